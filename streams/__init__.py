"""Kafka in, Kafka out: batches through Faust to views and services, and what they give to Kafka, Redis and files."""

from featurestore.deferred import defer

defer("faust.types.web", "aiohttp.client")  # the type of a client that is never made
