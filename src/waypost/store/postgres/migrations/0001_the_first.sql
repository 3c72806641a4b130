-- Text is compared byte by byte, as everywhere else in Waypost.

CREATE SEQUENCE number_block AS bigint;

CREATE TABLE node (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text   COLLATE "C" NOT NULL,
    began_ms bigint NOT NULL,
    until_ms bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE tenant (
    id          text    COLLATE "C" PRIMARY KEY,
    created_ms  bigint  NOT NULL,
    current_key text    NOT NULL,
    next_key    text    NOT NULL,
    revoked     boolean NOT NULL DEFAULT false
);

CREATE TABLE token (
    id         text    COLLATE "C" PRIMARY KEY,
    tenant     text    COLLATE "C" NOT NULL REFERENCES tenant (id),
    sha256     bytea   NOT NULL UNIQUE,
    read_only  boolean NOT NULL,
    created_ms bigint  NOT NULL
);

-- How often tenants, tokens and keys have changed.
CREATE TABLE people_version (count bigint NOT NULL);
INSERT INTO people_version VALUES (0);

CREATE TABLE message (
    tenant text   COLLATE "C" NOT NULL,
    id     text   COLLATE "C" NOT NULL,
    number bigint NOT NULL,
    facts  bytea  NOT NULL,
    body   bigint,
    source bigint,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX message_body ON message (body) WHERE body IS NOT NULL;
CREATE INDEX message_source ON message (source) WHERE source IS NOT NULL;

CREATE TABLE body (
    number bigint PRIMARY KEY,
    bytes  bytea  NOT NULL
);

CREATE TABLE delivery (
    number      bigint  PRIMARY KEY,
    tenant      text    COLLATE "C" NOT NULL,
    message_id  text    COLLATE "C" NOT NULL,
    lane        text    COLLATE "C" NOT NULL,
    host        text    COLLATE "C" NOT NULL,
    due_ms      bigint  NOT NULL,
    token       bigint,
    node        bigint,
    holding     boolean NOT NULL DEFAULT false,
    retried     integer NOT NULL DEFAULT 0,
    interrupted integer NOT NULL DEFAULT 0,
    canceling   boolean NOT NULL DEFAULT false,
    key         text    COLLATE "C"
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_scale_factor = 0.2
);
CREATE INDEX delivery_waiting ON delivery (tenant, lane, holding, due_ms, number)
    WHERE token IS NULL;
CREATE INDEX delivery_key ON delivery (tenant, key, due_ms) WHERE key IS NOT NULL;
CREATE INDEX delivery_node ON delivery (node) WHERE node IS NOT NULL;

CREATE TABLE hold (
    tenant   text   COLLATE "C" NOT NULL,
    resource text   COLLATE "C" NOT NULL,
    number   bigint NOT NULL,
    PRIMARY KEY (tenant, resource, number)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);

CREATE TABLE lane (
    tenant     text   COLLATE "C" NOT NULL,
    lane       text   COLLATE "C" NOT NULL,
    turn_ms    bigint,
    blocked_on text   COLLATE "C",
    retry_ms   bigint,
    PRIMARY KEY (tenant, lane)
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500
);
CREATE INDEX lane_due ON lane (turn_ms, tenant, lane)
    WHERE blocked_on IS NULL AND turn_ms IS NOT NULL;
CREATE INDEX lane_turn ON lane (tenant, turn_ms, lane)
    WHERE blocked_on IS NULL AND turn_ms IS NOT NULL;
CREATE INDEX lane_retry ON lane (retry_ms) WHERE blocked_on IS NOT NULL AND retry_ms IS NOT NULL;
CREATE INDEX lane_blocked ON lane (blocked_on, turn_ms, tenant, lane)
    WHERE blocked_on IS NOT NULL;

CREATE TABLE queue (
    tenant      text    COLLATE "C" NOT NULL,
    name        text    COLLATE "C" NOT NULL,
    parallelism integer NOT NULL,
    paused      boolean NOT NULL DEFAULT false,
    created_ms  bigint  NOT NULL,
    updated_ms  bigint  NOT NULL,
    accepted_ms bigint  NOT NULL,
    PRIMARY KEY (tenant, name)
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500
);

CREATE TABLE flow_key (
    tenant   text   COLLATE "C" NOT NULL,
    name     text   COLLATE "C" NOT NULL,
    facts    bytea  NOT NULL,
    used_ms  bigint NOT NULL,
    opens_ms bigint,
    PRIMARY KEY (tenant, name)
) WITH (
    fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500
);
CREATE INDEX flow_key_opens ON flow_key (opens_ms) WHERE opens_ms IS NOT NULL;
CREATE INDEX flow_key_used ON flow_key (used_ms);

CREATE TABLE dedup (
    tenant     text   COLLATE "C" NOT NULL,
    key        text   COLLATE "C" NOT NULL,
    message_id text   COLLATE "C" NOT NULL,
    until_ms   bigint NOT NULL,
    PRIMARY KEY (tenant, key)
) WITH (fillfactor = 80);
CREATE INDEX dedup_until ON dedup (until_ms);

-- In parts by time, which upkeep makes ahead and drops whole.
CREATE TABLE event (
    tenant     text   COLLATE "C" NOT NULL,
    time_ms    bigint NOT NULL,
    number     bigint NOT NULL,
    message_id text   COLLATE "C" NOT NULL,
    state      text   NOT NULL,
    detail     bytea,
    PRIMARY KEY (tenant, time_ms, number)
) PARTITION BY RANGE (time_ms);
CREATE INDEX event_message ON event (tenant, message_id);
CREATE TABLE event_of_other_times PARTITION OF event DEFAULT;
CREATE INDEX event_of_other_times_time ON event_of_other_times (time_ms);

-- How far upkeep has looked through the log, and where it is now.
CREATE TABLE upkeep (
    looked_ms bigint NOT NULL,
    until_ms  bigint,
    tenant    text   COLLATE "C" NOT NULL,
    time_ms   bigint NOT NULL,
    number    bigint NOT NULL,
    bytes_max bigint NOT NULL
) WITH (fillfactor = 50);
INSERT INTO upkeep VALUES (-1, NULL, '', 0, 0, 0);

CREATE TABLE dead_letter (
    tenant     text   COLLATE "C" NOT NULL,
    failed_ms  bigint NOT NULL,
    number     bigint NOT NULL,
    message_id text   COLLATE "C" NOT NULL,
    detail     bytea  NOT NULL,
    PRIMARY KEY (tenant, failed_ms, number)
);
CREATE INDEX dead_letter_message ON dead_letter (tenant, message_id);

CREATE TABLE schedule (
    tenant  text   COLLATE "C" NOT NULL,
    id      text   COLLATE "C" NOT NULL,
    next_ms bigint,
    facts   bytea  NOT NULL,
    body    bytea  NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX schedule_due ON schedule (next_ms) WHERE next_ms IS NOT NULL;

CREATE TABLE url_group (
    tenant text  COLLATE "C" NOT NULL,
    name   text  COLLATE "C" NOT NULL,
    id     text  COLLATE "C" NOT NULL,
    facts  bytea NOT NULL,
    PRIMARY KEY (tenant, name)
);
CREATE UNIQUE INDEX url_group_id ON url_group (tenant, id);
