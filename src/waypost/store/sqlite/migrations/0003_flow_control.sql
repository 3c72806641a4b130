-- `key` is the flow-control key that a delivery goes by.
ALTER TABLE delivery ADD COLUMN key TEXT;

-- What waits for a key is counted from this alone.
CREATE INDEX delivery_key ON delivery (tenant, key, token, due_ms) WHERE key IS NOT NULL;

-- `facts` is JSON: a FlowKey of the domain, its limits and its window.  `used_ms` is when it
-- was last used, or found in use.  `opens_ms` is when to look whether it has room for the
-- lanes that are blocked on it; it is null while there are none, or something has to happen.
CREATE TABLE flow_key (
    tenant   TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    facts    BLOB    NOT NULL,
    used_ms  INTEGER NOT NULL,
    opens_ms INTEGER,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX flow_key_used ON flow_key (used_ms);
CREATE INDEX flow_key_opens ON flow_key (opens_ms) WHERE opens_ms IS NOT NULL;

-- A queue that is blocked has its turn all the same when a message of its own in retry,
-- which holds its place, falls due: `retry_ms` says when.
ALTER TABLE lane ADD COLUMN retry_ms INTEGER;

CREATE INDEX lane_retry ON lane (retry_ms) WHERE blocked_on IS NOT NULL AND retry_ms IS NOT NULL;
