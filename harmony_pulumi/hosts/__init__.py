"""Hosts: connections to Linux machines, and what runs on them."""
