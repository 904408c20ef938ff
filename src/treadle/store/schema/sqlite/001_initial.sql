-- Treadle's tables. Times are integer microseconds since 1970 UTC.
-- States: 1 waiting, 2 scheduled, 3 ready, 4 blocked, 5 running, 6 held, 7 succeeded, 8 failed, 9 cancelled.
-- Outcomes: 1 succeeded, 2 failed, 3 snoozed, 4 released, 5 held, 6 aborted, 7 cancelled, 8 crashed.

CREATE TABLE treadle_meta (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO treadle_meta (name, value) VALUES ('store_id', lower(hex(randomblob(6))));

CREATE TABLE treadle_sequences (
    name TEXT PRIMARY KEY,
    next INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO treadle_sequences (name, next) VALUES ('job', 1), ('epoch', 1), ('lease', 1);

-- Narrow and hot: every claim and settle rewrites a row, so arguments live elsewhere.
CREATE TABLE treadle_jobs (
    id INTEGER PRIMARY KEY,
    queue TEXT NOT NULL CHECK (length(queue) BETWEEN 1 AND 100),
    task TEXT NOT NULL CHECK (length(task) BETWEEN 1 AND 200),
    state INTEGER NOT NULL CHECK (state BETWEEN 1 AND 9),
    priority INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN -100 AND 100),
    due_at INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    lease INTEGER,
    epoch INTEGER,
    started_at INTEGER,
    finished_at INTEGER,
    reason TEXT,
    CHECK ((state = 5) = (lease IS NOT NULL))
) STRICT;
CREATE INDEX treadle_jobs_ready ON treadle_jobs (queue, priority DESC, due_at, id, task) WHERE state = 3;
CREATE INDEX treadle_jobs_scheduled ON treadle_jobs (due_at) WHERE state = 2;
CREATE UNIQUE INDEX treadle_jobs_running ON treadle_jobs (lease) WHERE state = 5;
CREATE INDEX treadle_jobs_held ON treadle_jobs (queue) WHERE state = 6;
CREATE INDEX treadle_jobs_ended ON treadle_jobs (state, finished_at) WHERE state >= 7;

CREATE TABLE treadle_payloads (
    job_id INTEGER PRIMARY KEY,
    codec TEXT NOT NULL CHECK (length(codec) BETWEEN 1 AND 32 AND codec NOT GLOB '*[^a-z0-9_.-]*'),
    data BLOB NOT NULL,
    extra TEXT
) STRICT;

CREATE TABLE treadle_results (
    job_id INTEGER PRIMARY KEY,
    codec TEXT NOT NULL,
    data BLOB NOT NULL
) STRICT;

CREATE TABLE treadle_tags (
    tag TEXT NOT NULL,
    job_id INTEGER NOT NULL,
    PRIMARY KEY (tag, job_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX treadle_tags_job ON treadle_tags (job_id);

-- What a running attempt writes about itself; guarded by its lease.
CREATE TABLE treadle_progress (
    job_id INTEGER PRIMARY KEY,
    fraction REAL NOT NULL,
    message TEXT NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE treadle_checkpoints (
    job_id INTEGER PRIMARY KEY,
    codec TEXT NOT NULL,
    data BLOB NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;
CREATE TABLE treadle_immediates (
    job_id INTEGER NOT NULL,
    error_type TEXT NOT NULL,
    granted INTEGER NOT NULL,
    PRIMARY KEY (job_id, error_type)
) STRICT, WITHOUT ROWID;

-- One row per ended attempt, written once by settle or rescue; seq is commit order and never reused.
CREATE TABLE treadle_attempts (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker TEXT NOT NULL,
    outcome INTEGER NOT NULL CHECK (outcome BETWEEN 1 AND 8),
    started_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    error_type TEXT,
    message TEXT,
    traceback TEXT
) STRICT;
CREATE INDEX treadle_attempts_job ON treadle_attempts (job_id);

CREATE TABLE treadle_workers (
    slot INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL UNIQUE,
    name TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_started INTEGER NOT NULL,
    pid_namespace INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    dev INTEGER NOT NULL,
    ino INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL,
    queues TEXT NOT NULL,
    tasks TEXT NOT NULL,
    concurrency INTEGER NOT NULL
) STRICT;

CREATE TABLE treadle_queues (
    name TEXT PRIMARY KEY,
    max_length INTEGER CHECK (max_length > 0),
    when_full TEXT NOT NULL DEFAULT 'refuse' CHECK (when_full IN ('refuse', 'wait'))
) STRICT, WITHOUT ROWID;

CREATE TRIGGER treadle_job_deleted AFTER DELETE ON treadle_jobs BEGIN
    DELETE FROM treadle_payloads WHERE job_id = OLD.id;
    DELETE FROM treadle_results WHERE job_id = OLD.id;
    DELETE FROM treadle_attempts WHERE job_id = OLD.id;
    DELETE FROM treadle_progress WHERE job_id = OLD.id;
    DELETE FROM treadle_checkpoints WHERE job_id = OLD.id;
    DELETE FROM treadle_immediates WHERE job_id = OLD.id;
    DELETE FROM treadle_tags WHERE job_id = OLD.id;
END;

-- Operators' views: public API. Human words and times.
CREATE VIEW treadle_job_view AS
SELECT j.id, j.queue, j.task,
    CASE j.state WHEN 1 THEN 'waiting' WHEN 2 THEN 'scheduled' WHEN 3 THEN 'ready' WHEN 4 THEN 'blocked'
        WHEN 5 THEN 'running' WHEN 6 THEN 'held' WHEN 7 THEN 'succeeded' WHEN 8 THEN 'failed'
        ELSE 'cancelled' END AS state,
    j.priority, j.attempt, j.failures, j.crashes, j.reason,
    strftime('%Y-%m-%d %H:%M:%f', j.due_at / 1000000.0, 'unixepoch') AS due_at,
    strftime('%Y-%m-%d %H:%M:%f', j.enqueued_at / 1000000.0, 'unixepoch') AS enqueued_at,
    strftime('%Y-%m-%d %H:%M:%f', j.started_at / 1000000.0, 'unixepoch') AS started_at,
    strftime('%Y-%m-%d %H:%M:%f', j.finished_at / 1000000.0, 'unixepoch') AS finished_at,
    p.codec,
    CASE WHEN p.codec = 'json' THEN CAST(p.data AS TEXT) ELSE hex(p.data) END AS arguments,
    (SELECT a.message FROM treadle_attempts a WHERE a.job_id = j.id AND a.message IS NOT NULL
        ORDER BY a.seq DESC LIMIT 1) AS last_error
FROM treadle_jobs j LEFT JOIN treadle_payloads p ON p.job_id = j.id;

CREATE VIEW treadle_attempt_view AS
SELECT seq, job_id, attempt, worker, lease,
    CASE outcome WHEN 1 THEN 'succeeded' WHEN 2 THEN 'failed' WHEN 3 THEN 'snoozed' WHEN 4 THEN 'released'
        WHEN 5 THEN 'held' WHEN 6 THEN 'aborted' WHEN 7 THEN 'cancelled' ELSE 'crashed' END AS outcome,
    strftime('%Y-%m-%d %H:%M:%f', started_at / 1000000.0, 'unixepoch') AS started_at,
    strftime('%Y-%m-%d %H:%M:%f', finished_at / 1000000.0, 'unixepoch') AS finished_at,
    (finished_at - started_at) / 1000000.0 AS seconds, error_type, message, traceback
FROM treadle_attempts;

CREATE VIEW treadle_queue_view AS
SELECT queue, state, count(*) AS jobs, avg(attempt) AS average_attempts
FROM (SELECT queue, attempt,
    CASE state WHEN 1 THEN 'waiting' WHEN 2 THEN 'scheduled' WHEN 3 THEN 'ready' WHEN 4 THEN 'blocked'
        WHEN 5 THEN 'running' WHEN 6 THEN 'held' WHEN 7 THEN 'succeeded' WHEN 8 THEN 'failed'
        ELSE 'cancelled' END AS state
    FROM treadle_jobs)
GROUP BY queue, state;

CREATE VIEW treadle_stuck_view AS
SELECT j.id, j.queue, j.task, j.attempt, w.name AS worker,
    strftime('%Y-%m-%d %H:%M:%f', j.started_at / 1000000.0, 'unixepoch') AS started_at,
    (CAST(strftime('%s', 'now') AS INTEGER) - j.started_at / 1000000) AS seconds
FROM treadle_jobs j LEFT JOIN treadle_workers w ON w.epoch = j.epoch
WHERE j.state = 5 AND j.started_at / 1000000 < CAST(strftime('%s', 'now') AS INTEGER) - 300;

-- The INSERT recipe for other languages: one statement, one job. See docs/other-languages.md.
CREATE VIEW treadle_enqueue AS
SELECT task, queue, priority, due_at, CAST(NULL AS TEXT) AS arguments FROM treadle_jobs WHERE 0;
CREATE TRIGGER treadle_enqueue_insert INSTEAD OF INSERT ON treadle_enqueue BEGIN
    UPDATE treadle_sequences SET next = next + 1 WHERE name = 'job';
    INSERT INTO treadle_jobs (id, queue, task, state, priority, due_at, enqueued_at)
    SELECT next - 1, coalesce(NEW.queue, 'default'), NEW.task,
        CASE WHEN NEW.due_at > CAST(strftime('%s', 'now') AS INTEGER) * 1000000 THEN 2 ELSE 3 END,
        coalesce(NEW.priority, 0),
        coalesce(NEW.due_at, CAST(strftime('%s', 'now') AS INTEGER) * 1000000),
        CAST(strftime('%s', 'now') AS INTEGER) * 1000000
    FROM treadle_sequences WHERE name = 'job';
    INSERT INTO treadle_payloads (job_id, codec, data)
    SELECT next - 1, 'json', CAST(coalesce(NEW.arguments, '{}') AS BLOB)
    FROM treadle_sequences WHERE name = 'job';
END;
