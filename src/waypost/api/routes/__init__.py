"""One module a noun; `waypost.api.app` holds the table that names them."""
