-- What one account may have of nonces and of uploads.

-- Whose nonce it is, and the timestamp that was signed with it. Rows of before end by their age.
alter table oauth_nonce add column owner text not null default '', add column at bigint not null default 0;
create index on oauth_nonce (owner, at);

-- Of an owner with too many nonces only those above its floor are remembered, and requests with older timestamps are
-- refused: what was forgotten is no nonce that may be used again.
create unlogged table oauth_floor (
    owner text primary key,
    at bigint not null,
    raised timestamptz not null default now()
);

-- Who announced a file, and when a chunk of it last came.
alter table library_file
    add column account_id integer references account on delete set null,
    add column touched timestamptz not null default now();
