"""Clients of servers that carry class updates and bundles: OCI registries, TUF repositories, hawkBit.

None of them decides whether an update may be taken: they bring files whose bytes are what the server's own records say,
and `icis-deploy apply` verifies the signature. A device needs no package for them but `tuf`, for TUF alone.
"""
