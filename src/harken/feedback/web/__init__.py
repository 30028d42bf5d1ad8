"""The web app: people judge completions in a browser; owners run projects. Pages are made on the server."""
