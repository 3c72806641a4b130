-- The messages of a fan-out share a body: `body` is then the number of the first of them.
-- A callback has no body of its own, but a report in its place; `source` is the number of
-- the message that it is about.
ALTER TABLE message ADD COLUMN body INTEGER;
ALTER TABLE message ADD COLUMN source INTEGER;

CREATE INDEX message_body ON message (body) WHERE body IS NOT NULL;
CREATE INDEX message_source ON message (source) WHERE source IS NOT NULL;

-- `facts` is JSON: a UrlGroup of the domain, its endpoints in their order.
CREATE TABLE url_group (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    id     TEXT NOT NULL,
    facts  BLOB NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX url_group_id ON url_group (tenant, id);
