"""People's privacy: personal data redacted, pseudonyms, counts that single nobody out, what was made of what."""
