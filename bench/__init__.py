"""How fast Waypost is: against a bare HTTP server, beside hanging hosts, with much waiting, and
on PostgreSQL against SQLite.

    python -m bench [--quick] [names...]

Needs nginx and wrk, and PostgreSQL, which `make setup` brings.  Everything happens on loopback
and in one directory that is removed at the end.  A figure is the median of paired runs: each
run is measured beside what it is compared with, in the same minute, for machines have moods.
"""
