"""Thin dynamic providers: Pulumi's view of what the other layers do."""
