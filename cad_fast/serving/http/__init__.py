"""The HTTP interface: routes, bodies, errors in the form of OpenAI, and the page."""
