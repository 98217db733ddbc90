-- DHCP as operators set it (options and lease times by scope, reservations by more than a MAC, proxyDHCP), and what they
-- see of it: who had which address when, how full a range is, whose exchanges are followed.

alter table vlan add column dhcp_mode text not null default 'serve' check (dhcp_mode in ('serve', 'proxy'));

-- lease_secs is always what is in force; without lease_own it follows the region's setting dhcp_lease_secs.
alter table subnet add column lease_own boolean not null default false;
update subnet set lease_own = lease_secs <> 600;

alter table iprange add column lease_secs integer check (lease_secs between 30 and 86400);   -- null: the subnet's

-- An address that is set aside: for the one client that its key names (`reservedips`), or by a user, perhaps for no
-- client at all (`ipaddresses`).
alter table reserved_ip
    alter column mac drop not null,
    add column client_id bytea check (octet_length(client_id) between 1 and 255),     -- option 61 as it is sent
    add column circuit_id bytea check (octet_length(circuit_id) between 1 and 255),   -- option 82, sub-option 1
    add column remote_id bytea check (octet_length(remote_id) between 1 and 255),     -- sub-option 2; null: any
    add column lease_secs integer check (lease_secs between 30 and 86400),            -- null: the range's or the subnet's
    add column user_reserved boolean not null default false,
    add column account_id integer references account on delete set null,
    add column created timestamptz not null default now(),
    add constraint reserved_ip_one_key check (
        num_nonnulls(mac, client_id, circuit_id) <= 1
        and (user_reserved or num_nonnulls(mac, client_id, circuit_id) = 1)
        and (remote_id is null or circuit_id is not null));
create unique index reserved_ip_client_id_key on reserved_ip (subnet_id, client_id);
create unique index reserved_ip_circuit_key on reserved_ip (subnet_id, circuit_id, coalesce(remote_id, ''))
    where circuit_id is not null;

-- Options for everybody (no scope), a subnet, a range or a host. The closest scope wins.
create table dhcp_option (
    id integer generated always as identity primary key,
    subnet_id integer references subnet on delete cascade,
    iprange_id integer references iprange on delete cascade,
    reserved_ip_id integer references reserved_ip on delete cascade,
    code smallint not null check (code between 1 and 254),
    value bytea not null,                      -- as on the wire; empty: left out, whatever a wider scope says
    text text not null,                        -- as it was written
    type text not null default '',             -- how the text was read, where that was said
    always boolean not null default false,     -- sent whether asked for or not
    comment text not null default '',
    check (num_nonnulls(subnet_id, iprange_id, reserved_ip_id) <= 1)
);
create unique index dhcp_option_once on dhcp_option
    (code, coalesce(subnet_id, 0), coalesce(iprange_id, 0), coalesce(reserved_ip_id, 0));
create index on dhcp_option (subnet_id) where subnet_id is not null;
create index on dhcp_option (iprange_id) where iprange_id is not null;
create index on dhcp_option (reserved_ip_id) where reserved_ip_id is not null;

-- When the client got the address first; `granted` is the last time.
alter table lease add column since timestamptz not null default now();
update lease set since = granted where granted is not null;

-- Bindings that are over. Written when the address is taken back, so a grant pays nothing for it; what still stands in
-- `lease` is history too.
create table lease_history (
    id bigint generated always as identity primary key,
    address inet not null,
    vlan_id integer not null,
    client_kind smallint not null,
    client_key bytea not null,
    mac macaddr,
    hostname text not null,
    since timestamptz not null,
    ended timestamptz not null,                -- the durable end
    released boolean not null
);
create index on lease_history (address, since);
create index on lease_history (mac, since) where mac is not null;
create index on lease_history (since);

-- How full a dynamic range was when housekeeping last looked, and which threshold was told.
create table range_usage (
    range_id integer primary key references iprange on delete cascade,
    at timestamptz not null default now(),
    total bigint not null,                     -- without what is excluded
    bound bigint not null,
    resting bigint not null,
    level smallint not null default 0          -- 0, 80, 95
);

-- Machines whose every DHCP exchange is reported.
create table dhcp_trace (
    mac macaddr primary key,
    until timestamptz not null,
    username text not null default ''
);
