//! Two racks on a VLAN, as the region keeps them: shares of the blocks, what is held back, who is believed alive.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lease::{
    AttachReply, Attachment, Batch, BatchKey, Block, Client, ClientKey, HeartbeatReply, Outcome,
    SpoolId, Write, WriteKind, digest,
};
use sqlx::{AssertSqlSafe, PgPool};
use store::lease as db;
use store::lease::liveness;
use store::testing::TestDatabase;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(600);

/// VLAN 1, served by `ra` and `rb`, with twenty blocks of 64 addresses from 10.1.0.0 on; VLAN 2 is relayed into it.
struct Site {
    test: TestDatabase,
}

impl Site {
    async fn new() -> Site {
        let site = Site {
            test: store::testing::database().await,
        };
        site.run(
            "insert into rack (system_id, hostname) values ('ra', 'ra'), ('rb', 'rb'), ('rc', 'rc');
             insert into fabric (id, name) values (1, 'f');
             insert into vlan (id, fabric_id, vid, dhcp_on, primary_rack, secondary_rack, relay_vlan) values
                 (1, 1, 1, true, 'ra', 'rb', null), (2, 1, 2, false, null, null, 1);
             insert into subnet (id, vlan_id, name, cidr) values (1, 1, 's', '10.1.0.0/16');
             insert into iprange (id, subnet_id, type, start_ip, end_ip)
                 values (1, 1, 'dynamic', '10.1.0.0', '10.1.4.255');",
        )
        .await;
        let mut tx = site.pool().begin().await.unwrap();
        db::ensure_blocks(&mut tx, 1).await.unwrap();
        tx.commit().await.unwrap();
        site
    }

    fn pool(&self) -> &PgPool {
        &self.test.pool
    }

    async fn run(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(self.pool()).await.unwrap();
    }

    async fn set_vlan(&self, set: &str) {
        self.run(&format!("update vlan set {set} where id = 1"))
            .await;
        let mut tx = self.pool().begin().await.unwrap();
        db::assign_blocks(&mut tx, 1).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Who has the blocks, and who should: the last letter of the rack's name, or '-'.
    async fn blocks(&self) -> (String, String) {
        let row = "select string_agg(coalesce(right(owner, 1), '-'), '' order by first),
                          string_agg(coalesce(right(intended, 1), '-'), '' order by first)
                   from lease_block where range_id is not null";
        sqlx::query_as(row).fetch_one(self.pool()).await.unwrap()
    }

    async fn attach(&self, rack: &str, seq: u64) -> Attachment {
        match db::attach(self.pool(), rack, spool(rack), seq)
            .await
            .unwrap()
        {
            AttachReply::Attached(attachment) => attachment,
            other => panic!("attached, not {other:?}"),
        }
    }

    async fn heartbeat(&self, rack: &str, blocks: &[Block]) -> HeartbeatReply {
        let digest = digest(blocks.iter().map(|block| (block.id, block.epoch)));
        db::heartbeat(self.pool(), rack, spool(rack), &digest)
            .await
            .unwrap()
    }

    /// Leases the first `count` addresses of these blocks.
    async fn fill(&self, rack: &str, seq: u64, blocks: &[Block], count: usize) {
        let all = blocks.iter().flat_map(|block| {
            let IpAddr::V4(first) = block.first else {
                panic!("IPv4")
            };
            (0..block.count).map(move |n| (block, Ipv4Addr::from(u32::from(first) + n)))
        });
        let writes: Vec<Write> = all
            .take(count)
            .map(|(block, address)| {
                let [_, _, c, d] = address.octets();
                let client = Client {
                    vlan: 1,
                    key: ClientKey::Mac([2, 0, 0, 0, c, d]),
                };
                Write {
                    block: block.id,
                    epoch: block.epoch,
                    address: address.into(),
                    kind: WriteKind::Grant {
                        client,
                        lease: LEASE,
                        hostname: "".into(),
                    },
                }
            })
            .collect();
        assert_eq!(writes.len(), count);
        for (n, writes) in writes.chunks(512).enumerate() {
            let key = BatchKey {
                spool_id: spool(rack),
                seq: seq + n as u64,
            };
            let batch = Batch {
                key,
                drained: false,
                writes: writes.to_vec(),
            };
            let outcomes = db::commit(self.pool(), rack, &batch).await.unwrap();
            let durable = |outcome: &Outcome| matches!(outcome, Outcome::Durable { .. });
            assert!(outcomes.iter().all(durable), "{outcomes:?}");
        }
    }

    async fn conclude(&self) -> Vec<(String, bool)> {
        self.conclude_if(true).await
    }

    async fn conclude_if(&self, may_bury: bool) -> Vec<(String, bool)> {
        let mut tx = self.pool().begin().await.unwrap();
        let mut changed = liveness::conclude(&mut tx, may_bury).await.unwrap();
        tx.commit().await.unwrap();
        changed.sort();
        changed
    }

    async fn hears(&self, process: Uuid, racks: &[&str]) {
        let racks: Vec<String> = racks.iter().map(|rack| (*rack).into()).collect();
        let mut tx = self.pool().begin().await.unwrap();
        liveness::heard(&mut tx, process, &racks).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// The VLANs that the feed was told of since the last time.
    async fn told(&self) -> Vec<String> {
        sqlx::query_scalar("with gone as (delete from change returning kind, key) select kind || key from gone order by 1")
            .fetch_all(self.pool())
            .await
            .unwrap()
    }
}

fn spool(rack: &str) -> SpoolId {
    SpoolId([rack.as_bytes()[1]; 16])
}

const HALVES: &str = "aaaaaaaaabbbbbbbbb--";

#[tokio::test]
async fn each_of_two_racks_gets_45_percent_of_a_range() {
    let site = Site::new().await;
    assert_eq!(site.blocks().await.1, HALVES);
    let (a, b) = (site.attach("ra", 1).await, site.attach("rb", 1).await);
    assert_eq!((a.blocks.len(), b.blocks.len()), (9, 9));
    assert_eq!(site.blocks().await, (HALVES.into(), HALVES.into()));
    // Nothing waits for anybody: heartbeats are well, and housekeeping moves nothing.
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.told().await, [""; 0]);
    for (rack, blocks) in [("ra", &a.blocks), ("rb", &b.blocks)] {
        let reply = site.heartbeat(rack, blocks).await;
        assert!(matches!(reply, HeartbeatReply::Until(_)), "{reply:?}");
    }
}

#[tokio::test]
async fn a_rack_that_runs_low_is_handed_blocks_that_are_held_back() {
    let site = Site::new().await;
    let a = site.attach("ra", 1).await;
    site.attach("rb", 1).await;
    site.fill("ra", 2, &a.blocks, 518).await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.blocks().await.1, HALVES, "10 % are free");
    site.fill("ra", 20, &a.blocks, 519).await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.blocks().await.1, HALVES, "it is not believed alive");

    let process = Uuid::new_v4();
    site.hears(process, &["ra", "rb"]).await;
    site.conclude().await;
    site.told().await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.blocks().await.1, "aaaaaaaaabbbbbbbbba-");
    assert_eq!(site.told().await, ["link1"], "its heartbeat comes sooner");
    assert_eq!(
        site.heartbeat("ra", &a.blocks).await,
        HeartbeatReply::Attach
    );
    assert_eq!(site.attach("ra", 30).await.blocks.len(), 10);

    // The leases end: the block is empty, and comes back.
    site.run("update lease set ends = now() - interval '61 seconds'")
        .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(
        site.blocks().await,
        ("aaaaaaaaabbbbbbbbba-".into(), HALVES.into())
    );
    assert_eq!(site.attach("ra", 31).await.blocks.len(), 9);
}

#[tokio::test]
async fn racks_come_and_go_and_a_block_is_nobodys_but_its_owners_until_that_has_attached() {
    let site = Site::new().await;
    site.set_vlan("secondary_rack = null").await;
    let a = site.attach("ra", 1).await;
    assert_eq!(a.blocks.len(), 20, "a lone rack has all");
    site.fill("ra", 2, &a.blocks[10..], 3).await;

    site.set_vlan("secondary_rack = 'rb'").await;
    let (_, shared) = site.blocks().await;
    assert_eq!(shared.matches('b').count(), 9);
    assert_eq!(shared.matches('-').count(), 2);
    assert_eq!(
        &shared[10..11],
        "a",
        "where somebody is stays with its owner"
    );
    assert!(
        site.attach("rb", 1).await.blocks.is_empty(),
        "still the other's"
    );
    assert_eq!(
        site.heartbeat("ra", &a.blocks).await,
        HeartbeatReply::Attach
    );
    assert_eq!(site.attach("ra", 3).await.blocks.len(), 9);
    assert_eq!(site.heartbeat("rb", &[]).await, HeartbeatReply::Attach);
    assert_eq!(site.attach("rb", 2).await.blocks.len(), 9);

    // It dies and is replaced, first of all from what was held back; the dead one's blocks wait for its until.
    site.set_vlan("secondary_rack = 'rc'").await;
    assert_eq!(site.attach("rc", 1).await.blocks.len(), 2);
    site.run("update rack_session set until = now() - interval '59 seconds' where rack = 'rb'")
        .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.attach("rc", 2).await.blocks.len(), 2);
    site.run("update rack_session set until = now() - interval '61 seconds' where rack = 'rb'")
        .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.attach("rc", 3).await.blocks.len(), 9);
}

#[tokio::test]
async fn a_rack_is_believed_dead_when_no_process_hears_it() {
    let site = Site::new().await;
    let (one, other) = (Uuid::new_v4(), Uuid::new_v4());
    let is = |rack: &str, alive| (rack.to_owned(), alive);
    assert_eq!(site.conclude().await, [is("ra", false), is("rb", false)]);
    site.told().await;

    // A rack that shares no VLAN concerns nobody.
    site.hears(one, &["ra", "rb", "rc"]).await;
    site.hears(other, &["ra"]).await;
    assert_eq!(site.conclude().await, [is("ra", true), is("rb", true)]);
    assert_eq!(
        site.told().await,
        ["link1", "link2"],
        "with what is relayed there"
    );
    assert_eq!(site.conclude().await, []);
    assert_eq!(site.told().await, [""; 0], "no change, no word");

    site.hears(one, &["rb"]).await;
    assert_eq!(site.conclude().await, [], "the other process hears it");
    site.hears(other, &[]).await;
    assert_eq!(site.conclude_if(false).await, [], "it may be on its way");
    assert_eq!(site.conclude().await, [is("ra", false)]);
    site.hears(other, &["ra"]).await;
    assert_eq!(site.conclude().await, [is("ra", true)], "let back in");

    // A process that is gone does not renew what it said.
    site.run("update rack_link set seen = now() - interval '5 seconds' where rack = 'rb'")
        .await;
    assert_eq!(site.conclude().await, [is("rb", false)]);
    let mut db = site.pool().acquire().await.unwrap();
    liveness::forget_process(&mut db, other).await.unwrap();
    assert_eq!(site.conclude().await, [is("ra", false)]);
    let mut sharing = liveness::sharing_racks(&mut db).await.unwrap();
    sharing.sort();
    assert_eq!(sharing, ["ra", "rb"]);
}

#[tokio::test]
async fn two_processes_that_conclude_at_once_tell_it_once() {
    let site = Site::new().await;
    site.hears(Uuid::new_v4(), &["ra", "rb"]).await;
    let (a, b) = tokio::join!(site.conclude(), site.conclude());
    assert_eq!(a.len() + b.len(), 2, "{a:?} {b:?}");
}
