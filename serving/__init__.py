"""Serving: features and predictions over HTTP, read from the online store by the kernel that folded them."""
