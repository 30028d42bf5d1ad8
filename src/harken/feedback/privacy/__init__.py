"""People's privacy: personal data found and redacted, pseudonyms, counts that single nobody out, what was made of what."""
