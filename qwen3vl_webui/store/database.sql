-- The store's tables, schema version 1.
CREATE TABLE media (
    digest TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    record TEXT NOT NULL,
    linked TEXT,             -- absolute path of a file that stays where it is (--media-dir), NULL: our own copy
    modified INTEGER         -- st_mtime_ns of the linked file when it was digested
);
CREATE TABLE files (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES media (digest),
    name TEXT NOT NULL,
    purpose TEXT NOT NULL,   -- '': attached on the page; else what the API's client said
    created REAL NOT NULL
);
CREATE INDEX files_by_owner ON files (owner, created);
CREATE INDEX files_by_digest ON files (digest);
CREATE TABLE conversations (
    id TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    leaf TEXT,
    version INTEGER NOT NULL,
    updated REAL NOT NULL
);
CREATE INDEX conversations_by_owner ON conversations (owner, updated);
CREATE TABLE turns (
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    position INTEGER NOT NULL,
    state TEXT NOT NULL,
    text TEXT NOT NULL,
    thinking TEXT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (conversation, id)
);
CREATE INDEX turns_by_state ON turns (state);
CREATE TABLE shown (
    conversation TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    file TEXT NOT NULL REFERENCES files (id) ON DELETE CASCADE,
    PRIMARY KEY (conversation, file)
);
CREATE INDEX shown_by_file ON shown (file);
