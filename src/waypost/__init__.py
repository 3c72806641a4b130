"""Waypost: a self-hosted, durable HTTP message queue that speaks the QStash v2 API."""

__version__ = "0.1.0"
