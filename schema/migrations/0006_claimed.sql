-- Addresses of a block that its rack deals to nobody because some host answers for them. The rack says so twice a minute; what
-- it has not said for two minutes is not so any more. Nothing decides by these: they only show how full a range is.
alter table lease_block add column claimed integer not null default 0;
alter table lease_block add column claimed_at timestamptz;
