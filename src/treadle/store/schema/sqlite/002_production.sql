-- What a team expects of a worker in production: cancelling what runs, expiry, pauses, orders to workers, logs.

-- expires_at: no attempt starts after it. cancel_reason: somebody asked the running attempt to stop.
-- crash_cap: of the running attempt; its crashes at which the job is held, 0 for work that must not be repeated blindly.
ALTER TABLE treadle_jobs ADD COLUMN expires_at INTEGER;
ALTER TABLE treadle_jobs ADD COLUMN cancel_reason TEXT;
ALTER TABLE treadle_jobs ADD COLUMN crash_cap INTEGER NOT NULL DEFAULT 3;
CREATE INDEX treadle_jobs_expiring ON treadle_jobs (expires_at) WHERE state < 5 AND expires_at IS NOT NULL;
CREATE INDEX treadle_jobs_cancelling ON treadle_jobs (epoch) WHERE state = 5 AND cancel_reason IS NOT NULL;
CREATE INDEX treadle_jobs_blocked ON treadle_jobs (task, queue) WHERE state = 4;

-- The version of a task's parameters that the arguments were stored under.
ALTER TABLE treadle_payloads ADD COLUMN version INTEGER NOT NULL DEFAULT 1;

-- What an attempt in a process of its own used, and how that process ended when it ended with it (-9: signal 9).
ALTER TABLE treadle_attempts ADD COLUMN peak_rss INTEGER;
ALTER TABLE treadle_attempts ADD COLUMN cpu INTEGER;
ALTER TABLE treadle_attempts ADD COLUMN exit_code INTEGER;

-- What people want of a worker: NULL to work, or 'pause' or 'drain'.
ALTER TABLE treadle_workers ADD COLUMN orders TEXT;
ALTER TABLE treadle_workers ADD COLUMN ordered_by TEXT;

-- Queues and tasks nobody may start jobs of, with who said so, why, and until when.
CREATE TABLE treadle_pauses (
    kind TEXT NOT NULL CHECK (kind IN ('queue', 'task')),
    name TEXT NOT NULL,
    paused_at INTEGER NOT NULL,
    paused_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    until_at INTEGER,
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;

-- Lines a running attempt logged or printed; seq is commit order. Level as in Python's logging.
CREATE TABLE treadle_logs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id INTEGER NOT NULL,
    lease INTEGER NOT NULL,
    logged_at INTEGER NOT NULL,
    level INTEGER NOT NULL,
    source TEXT NOT NULL,
    text TEXT NOT NULL
) STRICT;
CREATE INDEX treadle_logs_job ON treadle_logs (job_id, seq);

DROP TRIGGER treadle_job_deleted;
CREATE TRIGGER treadle_job_deleted AFTER DELETE ON treadle_jobs BEGIN
    DELETE FROM treadle_payloads WHERE job_id = OLD.id;
    DELETE FROM treadle_results WHERE job_id = OLD.id;
    DELETE FROM treadle_attempts WHERE job_id = OLD.id;
    DELETE FROM treadle_progress WHERE job_id = OLD.id;
    DELETE FROM treadle_checkpoints WHERE job_id = OLD.id;
    DELETE FROM treadle_immediates WHERE job_id = OLD.id;
    DELETE FROM treadle_tags WHERE job_id = OLD.id;
    DELETE FROM treadle_logs WHERE job_id = OLD.id;
END;

DROP VIEW treadle_job_view;
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
        ORDER BY a.seq DESC LIMIT 1) AS last_error,
    strftime('%Y-%m-%d %H:%M:%f', j.expires_at / 1000000.0, 'unixepoch') AS expires_at,
    j.cancel_reason
FROM treadle_jobs j LEFT JOIN treadle_payloads p ON p.job_id = j.id;

DROP VIEW treadle_attempt_view;
CREATE VIEW treadle_attempt_view AS
SELECT seq, job_id, attempt, worker, lease,
    CASE outcome WHEN 1 THEN 'succeeded' WHEN 2 THEN 'failed' WHEN 3 THEN 'snoozed' WHEN 4 THEN 'released'
        WHEN 5 THEN 'held' WHEN 6 THEN 'aborted' WHEN 7 THEN 'cancelled' ELSE 'crashed' END AS outcome,
    strftime('%Y-%m-%d %H:%M:%f', started_at / 1000000.0, 'unixepoch') AS started_at,
    strftime('%Y-%m-%d %H:%M:%f', finished_at / 1000000.0, 'unixepoch') AS finished_at,
    (finished_at - started_at) / 1000000.0 AS seconds, error_type, message, traceback,
    peak_rss, cpu / 1000000.0 AS cpu_seconds, exit_code
FROM treadle_attempts;

CREATE VIEW treadle_log_view AS
SELECT seq, job_id, lease, strftime('%Y-%m-%d %H:%M:%f', logged_at / 1000000.0, 'unixepoch') AS logged_at,
    level, source, text
FROM treadle_logs;

CREATE VIEW treadle_pause_view AS
SELECT kind, name, strftime('%Y-%m-%d %H:%M:%f', paused_at / 1000000.0, 'unixepoch') AS paused_at, paused_by, reason,
    strftime('%Y-%m-%d %H:%M:%f', until_at / 1000000.0, 'unixepoch') AS until_at
FROM treadle_pauses;
