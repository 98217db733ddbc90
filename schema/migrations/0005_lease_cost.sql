-- What a lease costs to write. Measured on a storm of grants: a foreign key's look-up per row cost as much as the row.

-- An address lies in the one block whose run holds it; `lease_block.first` finds it.
alter table lease drop column block_id;

-- An event outlives its rack's row; the id stays readable.
alter table event drop constraint event_rack_fkey;
