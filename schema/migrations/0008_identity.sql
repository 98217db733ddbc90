-- A card that only its machine's inventory has named: it keeps no administrator's machine out, nor one that shows it.
alter table interface add column reported boolean not null default false;

-- Where a machine enlisted itself. Until somebody takes it up (status 0, New) it counts against its network and address.
alter table machine
    add column enlisted_rack text,
    add column enlisted_vlan integer,
    add column enlisted_address inet;
create index machine_enlisted on machine (enlisted_rack, enlisted_vlan) where enlisted_rack is not null and status = 0;
