@0xb3c5d1f09a7e4462;
# The contract between a region and a rack: Cap'n Proto RPC over mutual TLS, region port 5250.
#
# A rack opens one connection to every regiond process. The bootstrap capability is a Door. Without a client
# certificate a Door only enrols; with one, `hello` gives a Session. The same connection carries the region's
# calls to the rack (`Rack`, handed over in `hello`) and the feed (`FeedSink`, handed over in `subscribe`).
#
# Rules: fields are only ever added. Addresses are 16 octets, IPv4 as v4-mapped IPv6. Durations are
# milliseconds, always "time remaining", never a point in time. Ids are the MAAS system_id (6 characters)
# for racks and machines, the numeric MAAS ids for VLANs and subnets. Bulk never travels here: images go by
# ranged HTTPS from the region's rack port (5251).

interface Door {
  enrol @0 (token :Text, hostname :Text, csr :Data) -> (rack :Text, certificate :Data, authority :Data);
  # One-time token; csr, certificate and authority are DER (authority: the CA's certificate).
  hello @1 (hello :RackHello) -> (welcome :Welcome, session :Session);
  # Refused ("not enrolled", "revoked") without a valid client certificate.
}

# ---------------------------------------------------------------- hello

struct RackHello {
  protocol @0 :UInt16;              # 1
  features @1 :UInt64;              # bit set, none defined yet
  version @2 :Text;
  hostname @3 :Text;
  bootId @4 :Data;                  # random, new at every start of rackd
  interfaces @5 :List(RackInterface);
  rack @6 :Rack;
}

struct RackInterface {
  name @0 :Text;
  mac @1 :Data;
  addresses @2 :List(Prefix);
}

struct Prefix {
  address @0 :Data;                 # 16 octets
  length @1 :UInt8;                 # of the family's own length: 24 for a /24
}

struct Welcome {
  protocol @0 :UInt16;
  features @1 :UInt64;
  version @2 :Text;
  rack @3 :Text;
  region @4 :Text;                  # this regiond process
  databaseSystem @5 :UInt64;        # pg_control_system().system_identifier
  databaseTimeline @6 :UInt32;
  regions @7 :List(RegionEndpoint); # every live regiond process; the rack keeps a link to each
  heartbeatMs @8 :UInt32;
  certificateRenewMs @9 :UInt64;    # renew when less than this is left
}

struct RegionEndpoint {
  host @0 :Text;
  rpcPort @1 :UInt16;
  rackHttpPort @2 :UInt16;
}

interface Session {
  heartbeat @0 (spoolId :Data, digest :Data) -> (reply :HeartbeatReply);
  # digest: SHA-256 over the rack's (block, epoch) pairs, each 8 octets big-endian, sorted by block.
  attach @1 (spoolId :Data, spoolSeq :UInt64) -> (attachment :Attachment);
  # Only with an empty spool: it was drained by commitLeases first.
  commitLeases @2 (batch :LeaseBatch) -> (outcomes :List(LeaseOutcome));
  subscribe @3 (sink :FeedSink) -> ();
  # The region then streams a snapshot and after it deltas, until the sink or the link goes.
  bootConfig @4 (query :BootQuery) -> (machine :Machine);
  # For a MAC that the feed did not have. An unknown machine gets purpose `enlist` and an empty systemId.
  renew @5 (csr :Data) -> (certificate :Data);
  report @6 (events :List(RackEvent)) -> ();
  regions @7 () -> (regions :List(RegionEndpoint));
  # As in Welcome: asked now and then, because processes come and go while a link stays.
}

interface Rack {
  power @0 (operation :PowerOperation) -> (report :PowerReport);
  ping @1 () -> ();
  stats @2 () -> (stats :List(Stat));
  # What the rack counts, as its metrics page has it.
  claimed @3 () -> (blocks :List(ClaimedBlock));
  # Asked twice a minute; all its blocks that have any.
}

struct ClaimedBlock {
  block @0 :UInt64;
  addresses @1 :UInt32;             # dealt to nobody for now, because some host answers for them
}

struct Stat { name @0 :Text; value @1 :UInt64; }   # name: "dhcp_acks_total{shard=\"0\"}"

# ---------------------------------------------------------------- leases (docs/protocols.md, Leases)

struct ClientKey {
  vlan @0 :UInt32;
  union {
    mac @1 :Data;
    clientId @2 :Data;              # option 61, where a subnet opts in or hlen is 0
    duidIaid @3 :Data;              # DHCPv6, later
  }
}

struct HeartbeatReply {
  union {
    untilMs @0 :UInt64;             # how long the rack may serve its blocks from now on
    attach @1 :Void;                # the digest differs: forget the blocks and attach
    wait @2 :Void;                  # the database may have lost commits: only drains are taken now
  }
}

struct Attachment {
  untilMs @0 :UInt64;
  blocks @1 :List(Block);
  rows @2 :List(LeaseRow);
  state @3 :AttachState;            # anything but `attached`: nothing was done, and the rest is empty
}

enum AttachState {
  attached @0;
  wait @1;                          # the database may have lost commits: only drains are taken now
  behind @2;                        # spoolSeq is behind what the region has seen, or spoolId is a former one
}

struct Block {
  id @0 :UInt64;
  epoch @1 :UInt64;
  vlan @2 :UInt32;
  subnet @3 :UInt32;
  first @4 :Data;                   # 16 octets
  count @5 :UInt32;
}

struct LeaseRow {
  block @0 :UInt64;
  address @1 :Data;
  client @2 :ClientKey;             # absent (null pointer): only a quarantine
  remainingMs @3 :Int64;            # of the durable end; negative once it has passed
  quarantineMs @4 :UInt64;
  released @5 :Bool;
}

struct LeaseBatch {
  spoolId @0 :Data;
  seq @1 :UInt64;                   # with (rack, spoolId) the key: a repeat answers as before and writes nothing
  writes @2 :List(LeaseWrite);      # at most 512
}

struct LeaseWrite {
  block @0 :UInt64;
  epoch @1 :UInt64;
  address @2 :Data;
  client @3 :ClientKey;
  kind @4 :LeaseWriteKind;
  durationMs @5 :UInt64;            # grant, extend: the lease (made durable for twice as long); quarantine: its length
  hostname @6 :Text;                # what the client calls itself (option 12), "" if nothing
  drained @7 :Bool;                 # from the spool: ACKed already; the same for all writes of a batch
  silent @8 :Bool;                  # reclaim: its client has released it and nobody answers for it, so its end is not waited for
}

enum LeaseWriteKind { grant @0; extend @1; reclaim @2; quarantine @3; release @4; yield @5; }
# yield gives up a whole block; address and client are empty.

struct LeaseOutcome {
  union {
    durableMs @0 :Int64;            # what is left of the durable end
    done @1 :Void;                  # reclaim, quarantine, release, yield
    refused @2 :LeaseRefusal;
  }
}

enum LeaseRefusal { staleEpoch @0; otherClient @1; notOwner @2; notFound @3; notEnded @4; outsideBlock @5; }

# ---------------------------------------------------------------- the feed

interface FeedSink {
  snapshot @0 (part :FeedPart) -> ();
  # Parts in order; the last has `complete`. Built aside by the rack and swapped in whole.
  delta @1 (part :FeedPart) -> ();
}

struct FeedPart {
  generation @0 :UInt64;            # of the region process and subscription
  sequence @1 :UInt64;              # +1 a part; a gap means: subscribe again
  watermark @2 :UInt64;             # xid8: every change below it is included
  items @3 :List(FeedItem);
  removed @4 :List(Text);           # keys
  complete @5 :Bool;
}

struct FeedItem {
  key @0 :Text;                     # "link:5001", "machine:abc123", "file:<sha256>", "loader:bootx64.efi", "settings"
  union {
    link @1 :Link;
    machine @2 :Machine;
    file @3 :File;
    loader @4 :Loader;
    settings @5 :Settings;
    reservation @6 :Reservation;    # "reservation:<vlan>:<address>"
  }
}

struct Link {                       # a VLAN this rack serves
  vlan @0 :UInt32;
  vid @1 :UInt16;
  interface @2 :Text;               # the rack's own kernel device on it
  serverAddress @3 :Data;           # the rack's own address there: server-id, next-server
  role @4 :LinkRole;
  mtu @5 :UInt16;
  subnets @6 :List(Subnet);
  mode @7 :DhcpMode;
  rack @8 :UInt64;                  # the asking rack's number in the rendezvous of this VLAN's racks
  peers @9 :List(Peer);             # the VLAN's other racks
}

enum DhcpMode { serve @0; proxy @1; }
# proxy: somebody else hands out the addresses; only boot information is given.

struct Peer {                       # another rack of a VLAN
  rack @0 :UInt64;
  server @1 :Data;                  # its own address there
  alive @2 :Bool;
}

struct DhcpOption {                 # closest scope wins: host, range, subnet (with what is set globally)
  code @0 :UInt8;
  value @1 :Data;                   # as on the wire; empty: left out, whatever a wider scope says
  always @2 :Bool;                  # sent whether asked for or not
}

enum LinkRole { primary @0; secondary @1; }

struct Subnet {
  id @0 :UInt32;
  prefix @1 :Prefix;
  gateway @2 :Data;                 # empty: none
  dnsServers @3 :List(Data);
  ntpServers @4 :List(Data);
  domain @5 :Text;
  leaseSecs @6 :UInt32;
  ranges @7 :List(AddressRange);
  disabledArchs @8 :List(Text);     # MAAS boot method names
  clientIdIdentity @9 :Bool;        # opt in to option 61 as identity
  options @10 :List(DhcpOption);    # global ones included
}

struct AddressRange {
  first @0 :Data;
  last @1 :Data;
  kind @2 :RangeKind;
  id @3 :UInt32;
  leaseSecs @4 :UInt32;             # 0: the subnet's
  options @5 :List(DhcpOption);
}
enum RangeKind { dynamic @0; reserved @1; }

struct Reservation {
  vlan @0 :UInt32;
  subnet @1 :UInt32;
  mac @2 :Data;                     # one of: mac, clientId, circuitId (with remoteId, empty for any)
  address @3 :Data;
  hostname @4 :Text;
  clientId @5 :Data;
  circuitId @6 :Data;
  remoteId @7 :Data;
  leaseSecs @8 :UInt32;             # 0: the subnet's
  options @9 :List(DhcpOption);
}

struct Machine {
  systemId @0 :Text;                # "" while it is not known
  hostname @1 :Text;
  domain @2 :Text;
  macs @3 :List(Data);
  purpose @4 :BootPurpose;
  arch @5 :Text;                    # "amd64"
  subarch @6 :Text;                 # "generic"
  osystem @7 :Text;
  release @8 :Text;
  label @9 :Text;
  kernel @10 :Text;                 # URL paths on the rack: /images/<sha256>/<os>/<arch>/<subarch>/<release>/<label>/boot-kernel
  initrd @11 :Text;
  squashfs @12 :Text;
  extraOptions @13 :Text;           # after "---" on the kernel command line
  ephemeralOptions @14 :Text;       # before it
  bootWindow @15 :Bool;             # the region expects this machine to boot now: its preseed may be answered
}

enum BootPurpose { local @0; commissioning @1; enlist @2; xinstall @3; poweroff @4; }

struct File {                       # content a rack may serve under /images/<sha256>/...
  sha256 @0 :Data;
  sizeBytes @1 :UInt64;
  pieceBytes @2 :UInt32;            # 4 MiB
  pieces @3 :List(Data);            # SHA-256 of each piece, in order
  prefetch @4 :Bool;                # fetch before anyone asks
}

struct Loader { path @0 :Text; sha256 @1 :Data; }   # a file served by TFTP (and HTTP) under its own name

struct Settings {
  kernelOptions @0 :Text;
  logHost @1 :Text;
  logPort @2 :UInt16;
  enlist @3 :Bool;                  # unknown machines may enlist
  traces @4 :List(Trace);           # at most 16
}

struct Trace {                      # a machine each of whose DHCP messages is reported (DHCP_TRACE)
  mac @0 :Data;
  remainingMs @1 :UInt64;
}

# ---------------------------------------------------------------- boot and events

struct BootQuery {
  mac @0 :Data;
  uuid @1 :Text;                    # of earlier versions: boards share UUIDs, so none decides
  arch @2 :Text;
  address @3 :Data;
  vlan @4 :UInt32;
}

struct RackEvent {
  kind @0 :Text;                    # model::EventType name, e.g. "DHCP_ACK"
  mac @1 :Data;
  address @2 :Data;
  agoMs @3 :UInt64;                 # how long before this call it happened
  detail @4 :Text;
  bootMethod @5 :Text;              # of a BOOT_FILE: MAAS's name of the method that the client's option 93 asks for
}

# ---------------------------------------------------------------- power

struct PowerOperation {
  id @0 :Data;                      # 16 octets: the same operation may arrive twice
  driver @1 :Text;                  # "ipmi", "webhook", "manual"
  command @2 :PowerCommand;
  parameters @3 :Text;              # JSON object, MAAS power parameter names; secrets travel with one operation only
  deadlineMs @4 :UInt32;
}

enum PowerCommand { query @0; on @1; off @2; cycle @3; pxeOn @4; }
# pxeOn: next boot from the network, then on (cycle if it is on already).

struct PowerReport {
  state @0 :PowerState;
  steps @1 :List(Text);             # what was seen and done, in order
  union {
    done @2 :Void;
    failed @3 :PowerFailure;
  }
}

enum PowerState { unknown @0; on @1; off @2; error @3; }

struct PowerFailure { class @0 :PowerFailureClass; message @1 :Text; }
enum PowerFailureClass { unreachable @0; credentials @1; refused @2; timeout @3; parameters @4; busy @5; }
