use sim::{Guard, Plan, run};
#[test]
fn hunt() {
    let guard = std::env::var("G").unwrap();
    use Guard::*;
    let all = [
        EpochCompared,
        EpochAtAttach,
        AttachInOrder,
        DedupeKey,
        ReclaimConditional,
        QuarantineOnNewSpool,
        HeartbeatDigest,
        MoveAfterUntil,
        ReclaimWhileAttached,
        NoReuseDetached,
        UnknownStaysUnknown,
        FreshKey,
        FrozenWhileAttaching,
        DrainBeforeAttach,
        CommitBeforeReply,
        FsyncBeforeReply,
        MuteAfterUntil,
        SurvivorNeverAllocates,
    ];
    let removed: Vec<Guard> = all
        .into_iter()
        .filter(|g| guard.split(',').any(|n| n == format!("{g:?}")))
        .collect();
    let n: u64 = std::env::var("N").unwrap().parse().unwrap();
    let mut plan = Plan::calm();
    let over: Plan = std::env::var("P").unwrap().parse().unwrap();
    let _ = &mut plan;
    let calm = Plan::calm().to_string();
    let text = format!("{calm} {}", std::env::var("P").unwrap());
    let plan: Plan = text.parse().unwrap();
    let _ = over;
    let broken = plan.without(&removed);
    let t = std::time::Instant::now();
    let mut by = std::collections::BTreeMap::new();
    let mut first = None;
    for seed in 0..n {
        if let Err(f) = run(seed, &broken) {
            let key: String = f.what.chars().take(4).collect();
            let e: &mut (u64, u64) = by.entry(key).or_insert((seed, 0));
            e.1 += 1;
            if !f.what.starts_with("live") && first.is_none() {
                first = Some(f);
            }
        }
    }
    println!("{removed:?}: {by:?} in {:?}", t.elapsed());
    if let Some(f) = first {
        if std::env::var("T").is_ok() {
            println!("{f}");
        } else {
            println!("{} {:?} {}", f.seed, f.at, f.what);
        }
    }
}
