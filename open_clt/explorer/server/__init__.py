"""The explorer on the web: addresses of data, pages, and the server that answers."""
