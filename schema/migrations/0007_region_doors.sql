-- What one source may fill: events per machine and rack, octets of script results.

-- Housekeeping finds the oldest events, and the newest of each rack, without reading the table.
create index event_at on event (at);
create index event_rack on event (rack, id) where machine is null;

-- Octets that a machine has ever written into this result, rewrites included.
alter table script_result add column written_bytes bigint not null default 0;
update script_result
set written_bytes = octet_length(output) + octet_length(stdout) + octet_length(stderr) + octet_length(result);

-- Read piece by piece: of a compressed value every piece costs the whole.
alter table script_result
    alter column output set storage external,
    alter column stdout set storage external,
    alter column stderr set storage external,
    alter column result set storage external;
