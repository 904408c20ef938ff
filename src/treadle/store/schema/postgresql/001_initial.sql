-- Treadle's tables on PostgreSQL: the same as on SQLite, at its schema 2. Times are integer microseconds since 1970 UTC.
-- States: 1 waiting, 2 scheduled, 3 ready, 4 blocked, 5 running, 6 held, 7 succeeded, 8 failed, 9 cancelled.
-- Outcomes: 1 succeeded, 2 failed, 3 snoozed, 4 released, 5 held, 6 aborted, 7 cancelled, 8 crashed.
-- The schema that holds them is first in the search path while this runs; functions keep it.

CREATE TABLE treadle_meta (
    name text PRIMARY KEY,
    value text NOT NULL
);
INSERT INTO treadle_meta (name, value)
VALUES ('store_id', substr(replace(gen_random_uuid()::text, '-', ''), 1, 12)), ('place_offset', '0');

-- Numbers never given twice, outside of any transaction's fate. Leases come in blocks: a claim numbers its jobs itself.
CREATE SEQUENCE treadle_job_numbers AS bigint;
CREATE SEQUENCE treadle_epoch_numbers AS bigint;
CREATE SEQUENCE treadle_lease_numbers AS bigint INCREMENT BY 4096;
CREATE SEQUENCE treadle_row_numbers AS bigint;

-- One row for each connection that writes, numbered by each of its commits: by it a client whose connection was lost
-- during a COMMIT finds out. Updates stay on the page.
CREATE TABLE treadle_commits (
    mark text COLLATE "C" PRIMARY KEY,
    number bigint NOT NULL,
    made_at bigint NOT NULL
) WITH (fillfactor = 30, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- Narrow and hot: every claim and settle rewrites a row, so arguments live elsewhere. State is part of every index's
-- condition, so no update is heap-only; room on the page would be wasted, and vacuum has to come often instead.
CREATE TABLE treadle_jobs (
    id bigint PRIMARY KEY,
    queue text COLLATE "C" NOT NULL CHECK (length(queue) BETWEEN 1 AND 100),
    task text COLLATE "C" NOT NULL CHECK (length(task) BETWEEN 1 AND 200),
    state integer NOT NULL CHECK (state BETWEEN 1 AND 9),
    priority integer NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    due_at bigint NOT NULL,
    enqueued_at bigint NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    failures integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    lease bigint,
    epoch bigint,
    started_at bigint,
    finished_at bigint,
    reason text,
    expires_at bigint,
    cancel_reason text,
    crash_cap integer NOT NULL DEFAULT 3,
    CHECK ((state = 5) = (lease IS NOT NULL))
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000,
    autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX treadle_jobs_ready ON treadle_jobs (queue, priority DESC, due_at, id, task) WHERE state = 3;
CREATE INDEX treadle_jobs_scheduled ON treadle_jobs (due_at) WHERE state = 2;
CREATE UNIQUE INDEX treadle_jobs_running ON treadle_jobs (lease) WHERE state = 5;
CREATE INDEX treadle_jobs_held ON treadle_jobs (queue) WHERE state = 6;
CREATE INDEX treadle_jobs_ended ON treadle_jobs (state, finished_at, id) WHERE state >= 7;
CREATE INDEX treadle_jobs_expiring ON treadle_jobs (expires_at) WHERE state < 5 AND expires_at IS NOT NULL;
CREATE INDEX treadle_jobs_cancelling ON treadle_jobs (epoch) WHERE state = 5 AND cancel_reason IS NOT NULL;
CREATE INDEX treadle_jobs_blocked ON treadle_jobs (task, queue) WHERE state = 4;

CREATE TABLE treadle_payloads (
    job_id bigint PRIMARY KEY,
    codec text NOT NULL CHECK (length(codec) BETWEEN 1 AND 32 AND codec !~ '[^a-z0-9_.-]'),
    data bytea NOT NULL,
    extra text,
    version integer NOT NULL DEFAULT 1
);

CREATE TABLE treadle_results (
    job_id bigint PRIMARY KEY,
    codec text NOT NULL,
    data bytea NOT NULL
);

CREATE TABLE treadle_tags (
    tag text COLLATE "C" NOT NULL,
    job_id bigint NOT NULL,
    PRIMARY KEY (tag, job_id)
);
CREATE INDEX treadle_tags_job ON treadle_tags (job_id);

-- What a running attempt writes about itself; guarded by its lease.
CREATE TABLE treadle_progress (
    job_id bigint PRIMARY KEY,
    fraction double precision NOT NULL,
    message text NOT NULL,
    updated_at bigint NOT NULL
);
CREATE TABLE treadle_checkpoints (
    job_id bigint PRIMARY KEY,
    codec text NOT NULL,
    data bytea NOT NULL,
    updated_at bigint NOT NULL
);
CREATE TABLE treadle_immediates (
    job_id bigint NOT NULL,
    error_type text COLLATE "C" NOT NULL,
    granted integer NOT NULL,
    PRIMARY KEY (job_id, error_type)
);

-- One row per ended attempt, written once by settle or rescue. Its place is the number of its transaction, then a number
-- within: whoever reads only places below the oldest transaction that still writes reads them in one fixed order.
CREATE TABLE treadle_attempts (
    seq bigint PRIMARY KEY
        DEFAULT (pg_current_xact_id()::text::bigint << 20) | (nextval('treadle_row_numbers') & 1048575),
    job_id bigint NOT NULL,
    lease bigint NOT NULL,
    attempt integer NOT NULL,
    worker text NOT NULL,
    outcome integer NOT NULL CHECK (outcome BETWEEN 1 AND 8),
    started_at bigint NOT NULL,
    finished_at bigint NOT NULL,
    error_type text,
    message text,
    traceback text,
    peak_rss bigint,
    cpu bigint,
    exit_code integer
);
CREATE INDEX treadle_attempts_job ON treadle_attempts (job_id);

CREATE TABLE treadle_workers (
    slot bigint PRIMARY KEY,
    epoch bigint NOT NULL UNIQUE,
    name text NOT NULL,
    host text NOT NULL,
    pid bigint NOT NULL,
    pid_started bigint NOT NULL,
    pid_namespace bigint NOT NULL,
    boot_id text NOT NULL,
    dev bigint NOT NULL,
    ino bigint NOT NULL,
    started_at bigint NOT NULL,
    seen_at bigint NOT NULL,
    queues text NOT NULL,
    tasks text NOT NULL,
    concurrency integer NOT NULL,
    orders text,
    ordered_by text
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.2);

CREATE TABLE treadle_queues (
    name text COLLATE "C" PRIMARY KEY,
    max_length integer CHECK (max_length > 0),
    when_full text NOT NULL DEFAULT 'refuse' CHECK (when_full IN ('refuse', 'wait'))
);

-- Queues and tasks nobody may start jobs of, with who said so, why, and until when.
CREATE TABLE treadle_pauses (
    kind text NOT NULL CHECK (kind IN ('queue', 'task')),
    name text COLLATE "C" NOT NULL,
    paused_at bigint NOT NULL,
    paused_by text NOT NULL,
    reason text NOT NULL,
    until_at bigint,
    PRIMARY KEY (kind, name)
);

-- Lines a running attempt logged or printed. Level as in Python's logging.
CREATE TABLE treadle_logs (
    seq bigint PRIMARY KEY
        DEFAULT (pg_current_xact_id()::text::bigint << 20) | (nextval('treadle_row_numbers') & 1048575),
    job_id bigint NOT NULL,
    lease bigint NOT NULL,
    logged_at bigint NOT NULL,
    level integer NOT NULL,
    source text NOT NULL,
    text text NOT NULL
);
CREATE INDEX treadle_logs_job ON treadle_logs (job_id, seq);

CREATE FUNCTION treadle_forget_jobs() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM treadle_payloads WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_results WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_attempts WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_progress WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_checkpoints WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_immediates WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_tags WHERE job_id IN (SELECT id FROM gone);
    DELETE FROM treadle_logs WHERE job_id IN (SELECT id FROM gone);
    RETURN NULL;
END $$;
CREATE TRIGGER treadle_job_deleted AFTER DELETE ON treadle_jobs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION treadle_forget_jobs();

-- Operators' views: public API. Human words and times, as on SQLite.
CREATE FUNCTION treadle_moment(micros bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_char(to_timestamp(micros / 1000000.0) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.MS')
$$;
CREATE FUNCTION treadle_state(code integer) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (ARRAY['waiting', 'scheduled', 'ready', 'blocked', 'running', 'held', 'succeeded', 'failed',
        'cancelled'])[code]
$$;

CREATE VIEW treadle_job_view AS
SELECT j.id, j.queue, j.task, treadle_state(j.state) AS state, j.priority, j.attempt, j.failures, j.crashes, j.reason,
    treadle_moment(j.due_at) AS due_at, treadle_moment(j.enqueued_at) AS enqueued_at,
    treadle_moment(j.started_at) AS started_at, treadle_moment(j.finished_at) AS finished_at, p.codec,
    CASE WHEN p.codec = 'json' THEN convert_from(p.data, 'UTF8') ELSE upper(encode(p.data, 'hex')) END AS arguments,
    (SELECT a.message FROM treadle_attempts a WHERE a.job_id = j.id AND a.message IS NOT NULL
        ORDER BY a.seq DESC LIMIT 1) AS last_error,
    treadle_moment(j.expires_at) AS expires_at, j.cancel_reason
FROM treadle_jobs j LEFT JOIN treadle_payloads p ON p.job_id = j.id;

CREATE VIEW treadle_attempt_view AS
SELECT seq, job_id, attempt, worker, lease,
    (ARRAY['succeeded', 'failed', 'snoozed', 'released', 'held', 'aborted', 'cancelled', 'crashed'])[outcome] AS outcome,
    treadle_moment(started_at) AS started_at, treadle_moment(finished_at) AS finished_at,
    ((finished_at - started_at) / 1000000.0)::double precision AS seconds, error_type, message, traceback,
    peak_rss, (cpu / 1000000.0)::double precision AS cpu_seconds, exit_code
FROM treadle_attempts;

CREATE VIEW treadle_queue_view AS
SELECT queue, treadle_state(state) AS state, count(*) AS jobs, avg(attempt)::double precision AS average_attempts
FROM treadle_jobs GROUP BY queue, state;

CREATE VIEW treadle_stuck_view AS
SELECT j.id, j.queue, j.task, j.attempt, w.name AS worker, treadle_moment(j.started_at) AS started_at,
    extract(epoch FROM clock_timestamp())::bigint - j.started_at / 1000000 AS seconds
FROM treadle_jobs j LEFT JOIN treadle_workers w ON w.epoch = j.epoch
WHERE j.state = 5 AND j.started_at / 1000000 < extract(epoch FROM clock_timestamp())::bigint - 300;

CREATE VIEW treadle_log_view AS
SELECT seq, job_id, lease, treadle_moment(logged_at) AS logged_at, level, source, text FROM treadle_logs;

CREATE VIEW treadle_pause_view AS
SELECT kind, name, treadle_moment(paused_at) AS paused_at, paused_by, reason, treadle_moment(until_at) AS until_at
FROM treadle_pauses;

-- The INSERT recipe for other languages: one statement, one job. See docs/other-languages.md.
CREATE VIEW treadle_enqueue AS
SELECT task, queue, priority, due_at, NULL::text AS arguments FROM treadle_jobs WHERE false;
CREATE FUNCTION treadle_enqueue_insert() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    number bigint := nextval('treadle_job_numbers');
    micros bigint := (extract(epoch FROM clock_timestamp()) * 1000000)::bigint;
BEGIN
    INSERT INTO treadle_jobs (id, queue, task, state, priority, due_at, enqueued_at)
    VALUES (number, coalesce(NEW.queue, 'default'), NEW.task, CASE WHEN NEW.due_at > micros THEN 2 ELSE 3 END,
        coalesce(NEW.priority, 0), coalesce(NEW.due_at, micros), micros);
    INSERT INTO treadle_payloads (job_id, codec, data)
    VALUES (number, 'json', convert_to(coalesce(NEW.arguments, '{}'), 'UTF8'));
    RETURN NEW;
END $$;
CREATE TRIGGER treadle_enqueue_insert INSTEAD OF INSERT ON treadle_enqueue
    FOR EACH ROW EXECUTE FUNCTION treadle_enqueue_insert();
