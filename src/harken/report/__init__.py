"""Run folder -> one self-contained HTML file that people can read, send and print."""
