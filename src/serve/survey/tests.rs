//! Heads made by hand, judged and put in order.

use super::*;
use crate::model::SchemaHash;
use crate::store::Facts;

const LIMITS: Limits = Limits { soft_pending: 10, hard_pending: 100, soft_age_s: 60, hard_age_s: 600 };

fn head(org: &str, epoch: &str, age_s: u64) -> (Slot, Head) {
    let facts = Facts {
        id: SnapshotId::from_bytes([7; 16]),
        epoch: Epoch::new(epoch),
        sync_id: SyncId(5),
        rows: 10,
        raw_len: 900,
        len: 100,
        packs: Vec::new(),
    };
    let current = Some(Published { facts, age: Duration::from_secs(age_s) });
    (Slot { org: Org::new(org), schema: SchemaHash::new("s") }, Head { generation: Generation(1), current })
}

fn listed(epoch: Option<&str>, pending: Vec<u64>) -> Vec<(String, Standing, Option<u64>)> {
    let heads = vec![head("fresh", "e", 5), head("late", "e", 70), head("full", "e", 5), head("old", "d", 5)];
    let known = ["fresh", "new"].map(Org::new).into();
    let survey = assemble(heads, &known, epoch.map(Epoch::new).as_ref(), pending, &LIMITS, 3);
    assert_eq!((survey.totals.orgs, survey.totals.rows, survey.totals.other_schemas), (5, 40, 3));
    assert_eq!(survey.rows_of(&Org::new("late")), Some(10));
    let told = |it: &Surveyed| (it.org.to_string(), it.standing, it.kept.as_ref().and_then(|kept| kept.pending));
    survey.orgs.iter().map(told).collect()
}

#[tokio::test]
async fn what_needs_an_eye_comes_first_and_what_the_database_does_not_tell_is_unchecked() {
    let of = |org: &str, standing, pending| (org.to_owned(), standing, pending);
    let expected = [
        of("new", Standing::Missing, None),
        of("full", Standing::Unusable, Some(101)),
        of("old", Standing::Unusable, None),
        of("late", Standing::Stale, Some(1)),
        of("fresh", Standing::Fresh, Some(0)),
    ];
    assert_eq!(listed(Some("e"), vec![0, 1, 101, 0]), expected);
    let unchecked = listed(None, Vec::new());
    assert_eq!(unchecked[0], of("new", Standing::Missing, None));
    assert!(unchecked[1..].iter().all(|it| it.1 == Standing::Unchecked && it.2.is_none()), "{unchecked:?}");
}
