-- Disks that several paths lead to, and the background look at the power of machines.

alter table block_device add column paths integer not null default 1;

-- A sweep's query is deleted when it ends: it is nobody's wish, only a look.
alter table work add column sweep boolean not null default false;
create index on work (id) where sweep;

-- When a sweep last asked a BMC, and how often in a row it got no state.
alter table bmc add column swept timestamptz;
alter table bmc add column sweep_failures integer not null default 0;

-- Cipher suites that no rack has were taken by the API and refused by every operation: such a BMC is asked for what it has.
update bmc set parameters = parameters - 'cipher_suite_id'
where parameters ->> 'cipher_suite_id' in ('8', '12');
