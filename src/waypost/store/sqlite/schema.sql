CREATE TABLE body (
    number INTEGER NOT NULL PRIMARY KEY,
    bytes  BLOB    NOT NULL
) STRICT;

CREATE TABLE boot (count INTEGER NOT NULL) STRICT;

CREATE TABLE dead_letter (
    tenant     TEXT    NOT NULL,
    failed_ms  INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    message_id TEXT    NOT NULL,
    detail     BLOB    NOT NULL,
    PRIMARY KEY (tenant, failed_ms, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX dead_letter_message ON dead_letter (tenant, message_id);

CREATE TABLE dedup (
    tenant     TEXT    NOT NULL,
    key        TEXT    NOT NULL,
    message_id TEXT    NOT NULL,
    until_ms   INTEGER NOT NULL,
    PRIMARY KEY (tenant, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX dedup_until ON dedup (until_ms);

CREATE TABLE delivery (
    number      INTEGER NOT NULL PRIMARY KEY,
    tenant      TEXT    NOT NULL,
    message_id  TEXT    NOT NULL,
    lane        TEXT    NOT NULL,
    host        TEXT    NOT NULL,
    due_ms      INTEGER NOT NULL,
    token       INTEGER,
    holding     INTEGER NOT NULL DEFAULT 0,
    retried     INTEGER NOT NULL DEFAULT 0,
    interrupted INTEGER NOT NULL DEFAULT 0,
    canceling   INTEGER NOT NULL DEFAULT 0
, key TEXT) STRICT;

CREATE INDEX delivery_key ON delivery (tenant, key, token, due_ms) WHERE key IS NOT NULL;

CREATE INDEX delivery_waiting ON delivery (tenant, lane, holding, due_ms, number)
    WHERE token IS NULL;

CREATE TABLE event (
    tenant     TEXT    NOT NULL,
    time_ms    INTEGER NOT NULL,
    number     INTEGER NOT NULL,
    message_id TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    detail     BLOB,
    PRIMARY KEY (tenant, time_ms, number)
) STRICT, WITHOUT ROWID;

CREATE INDEX event_message ON event (tenant, message_id);

CREATE TABLE flow_key (
    tenant   TEXT    NOT NULL,
    name     TEXT    NOT NULL,
    facts    BLOB    NOT NULL,
    used_ms  INTEGER NOT NULL,
    opens_ms INTEGER,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX flow_key_opens ON flow_key (opens_ms) WHERE opens_ms IS NOT NULL;

CREATE INDEX flow_key_used ON flow_key (used_ms);

CREATE TABLE hold (
    tenant   TEXT    NOT NULL,
    resource TEXT    NOT NULL,
    number   INTEGER NOT NULL,
    PRIMARY KEY (tenant, resource, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE lane (
    tenant     TEXT NOT NULL,
    lane       TEXT NOT NULL,
    turn_ms    INTEGER,
    blocked_on TEXT, retry_ms INTEGER,
    PRIMARY KEY (tenant, lane)
) STRICT, WITHOUT ROWID;

CREATE INDEX lane_blocked ON lane (blocked_on, turn_ms) WHERE blocked_on IS NOT NULL;

CREATE INDEX lane_due ON lane (turn_ms) WHERE blocked_on IS NULL AND turn_ms IS NOT NULL;

CREATE INDEX lane_retry ON lane (retry_ms) WHERE blocked_on IS NOT NULL AND retry_ms IS NOT NULL;

CREATE INDEX lane_turn ON lane (tenant, turn_ms) WHERE blocked_on IS NULL AND turn_ms IS NOT NULL;

CREATE TABLE message (
    tenant TEXT    NOT NULL,
    id     TEXT    NOT NULL,
    number INTEGER NOT NULL,
    facts  BLOB    NOT NULL, body INTEGER, source INTEGER,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX message_body ON message (body) WHERE body IS NOT NULL;

CREATE INDEX message_source ON message (source) WHERE source IS NOT NULL;

CREATE TABLE queue (
    tenant      TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    parallelism INTEGER NOT NULL,
    paused      INTEGER NOT NULL DEFAULT 0,
    created_ms  INTEGER NOT NULL,
    updated_ms  INTEGER NOT NULL,
    accepted_ms INTEGER NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE schedule (
    tenant  TEXT NOT NULL,
    id      TEXT NOT NULL,
    next_ms INTEGER,
    facts   BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX schedule_due ON schedule (next_ms) WHERE next_ms IS NOT NULL;

CREATE TABLE schedule_body (
    tenant TEXT NOT NULL,
    id     TEXT NOT NULL,
    bytes  BLOB NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE TABLE tenant (
    id          TEXT    NOT NULL PRIMARY KEY,
    created_ms  INTEGER NOT NULL,
    current_key TEXT    NOT NULL,
    next_key    TEXT    NOT NULL,
    revoked     INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
    id         TEXT    NOT NULL PRIMARY KEY,
    tenant     TEXT    NOT NULL REFERENCES tenant (id),
    sha256     BLOB    NOT NULL UNIQUE,
    read_only  INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE url_group (
    tenant TEXT NOT NULL,
    name   TEXT NOT NULL,
    id     TEXT NOT NULL,
    facts  BLOB NOT NULL,
    PRIMARY KEY (tenant, name)
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX url_group_id ON url_group (tenant, id);

