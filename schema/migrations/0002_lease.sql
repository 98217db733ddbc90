-- Leases: address blocks, bindings, what racks were promised and what they already asked.
-- The rules are those of the lease protocol (docs/ARCHITECTURE.md, Leases; the crate `lease`).
--
-- Owners are names without a foreign key on purpose: a rack that was deleted may still serve its blocks until its
-- `until` has passed, and that must not be forgotten with the rack.

-- Dynamic ranges are cut into blocks with one owner each.
create table lease_block (
    id bigint generated always as identity primary key,
    range_id integer references iprange on delete set null,     -- null: to be given up, the range is gone or was moved
    subnet_id integer references subnet on delete set null,
    vlan_id integer not null,
    first inet not null unique,
    count integer not null check (count between 1 and 64),
    owner text,                                -- the rack that may grant from it
    intended text,                             -- the rack that should own it; moves at the owner's next attach, or until + 60 s
    epoch bigint not null default 1,           -- +1 at every move and at every attach of its owner
    quarantined_until timestamptz,             -- of every address of the block
    longest_lease_secs integer not null        -- the longest lease that was in force while the block exists
);
create index on lease_block (owner);
create index on lease_block (intended);
create index on lease_block (range_id);
create index on lease_block (vlan_id);

-- One row per address that somebody holds or held, or that rests.
create table lease (
    address inet primary key,
    block_id bigint references lease_block on delete set null,
    vlan_id integer not null,                  -- with client_key: the client's identity
    client_kind smallint check (client_kind between 0 and 2),   -- 0 MAC, 1 option 61, 2 DUID and IAID; null: only a quarantine
    client_key bytea,
    mac macaddr,                               -- of the client, where its identity tells it
    ends timestamptz not null,                 -- no write ever makes it earlier
    quarantined_until timestamptz,
    released boolean not null default false,   -- reclaim it first
    hostname text not null default '',
    granted timestamptz,
    check ((client_kind is null) = (client_key is null))
) with (fillfactor = 70);                      -- renewals touch no indexed column: room for them on the page
create index on lease (block_id);
create index on lease (mac);

-- What a rack was promised: it may serve its blocks until then.
create table rack_session (
    rack text primary key,
    spool_id bytea,
    until timestamptz not null,
    attached timestamptz
);

-- Every spool id a rack ever had. Below `floor` nothing is taken any more: keys are forgotten there.
create table rack_spool (
    rack text not null,
    spool_id bytea not null,
    floor bigint not null,
    registered timestamptz not null default now(),
    primary key (rack, spool_id)
);

-- Batches that were committed, with their answers: a repeat writes nothing.
create table lease_batch (
    rack text not null,
    spool_id bytea not null,
    seq bigint not null,
    at timestamptz not null default now(),
    verdicts smallint[] not null,              -- 0 durable, 1 done, 16 + n refused
    ends timestamptz[] not null,               -- of the durable ones
    primary key (rack, spool_id, seq)
);
create index on lease_batch (at);

-- The database as it was last seen. Another system identifier or timeline means a promotion or a restore.
create table lease_database (
    one boolean primary key default true check (one),
    system_identifier bigint not null,
    timeline integer not null,
    hold_until timestamptz                     -- before this only drains are taken; then every epoch + 1,000
);
