"""Addresses, proxies and keys of HTTP clients and servers, as people and machines give them."""
