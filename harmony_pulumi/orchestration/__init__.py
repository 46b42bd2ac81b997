"""WHEN: the order of acts across sites. No Pulumi, no topology."""
