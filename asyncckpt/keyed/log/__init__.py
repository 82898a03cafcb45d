"""The msgpack kind: a log of records."""
