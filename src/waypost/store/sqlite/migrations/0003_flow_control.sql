-- `key` is the flow-control key that a delivery goes by.
ALTER TABLE delivery ADD COLUMN key TEXT;

CREATE INDEX delivery_key ON delivery (tenant, key) WHERE key IS NOT NULL;

-- `facts` is JSON: a FlowKey of the domain, its limits and its window.
CREATE TABLE flow_key (
    tenant  TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    facts   BLOB    NOT NULL,
    used_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX flow_key_used ON flow_key (used_ms);
