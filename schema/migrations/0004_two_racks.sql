-- Two racks on a VLAN: which region process hears which rack, and what follows for the rack's peers.
-- Nothing of the lease protocol's safety looks at these tables: they only say who answers.

-- A rack that is linked to a region process, answers its pings and has attached. The process renews its rows.
create table rack_link (
    rack text not null references rack on delete cascade,
    process uuid not null,                     -- without a foreign key: a process is listed later than it hears racks
    seen timestamptz not null default now(),
    primary key (rack, process)
);

-- What the racks' peers were told last. Written by whichever process sees it change.
create table rack_liveness (
    rack text primary key references rack on delete cascade,
    alive boolean not null,
    since timestamptz not null default now()
);
