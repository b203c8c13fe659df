"""A sweep sent to a Ray cluster from elsewhere, as one of its jobs. Runs where the person is; `pack` and `moved` run there.

`parcel` decides what travels, `request` what the cluster is told to do, `jobs` talks to it through Ray Jobs, and `fetching`
brings the results back. All goes through the port of Ray's dashboard: no file system is shared, no other port is open.
"""
