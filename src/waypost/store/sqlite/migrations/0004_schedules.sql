-- `facts` is JSON: a Schedule of the domain.  `next_ms` is when it is due; NULL where it is
-- paused, never fires again, or its tenant was revoked.
CREATE TABLE schedule (
    tenant  TEXT NOT NULL,
    id      TEXT NOT NULL,
    next_ms INTEGER,
    facts   BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX schedule_due ON schedule (next_ms) WHERE next_ms IS NOT NULL;

-- Beside the schedule, which is written at each of its runs.
CREATE TABLE schedule_body (
    tenant TEXT NOT NULL,
    id     TEXT NOT NULL,
    bytes  BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;
