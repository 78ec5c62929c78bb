//! Removes the objects that nobody needs any more, one org after the other. The rules stand in the room's doc.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::model::{Generation, SnapshotId};
use crate::snapshot::PackId;
use crate::store::object::clock::{Clock, age};
use crate::store::object::paths::{self, Name};
use crate::store::object::{fault, heads};
use crate::store::{Retention, StoreError};

/// How many objects are removed at once.
const AT_ONCE: usize = 8;

/// Sweeps everything; `now` is the store's time. Says how many packs were removed. Memory: the names of one org's
/// objects.
pub async fn run(store: &dyn ObjectStore, now: SystemTime, retention: &Retention) -> Result<u64, StoreError> {
    let mut removed = 0;
    for org_root in store.list_with_delimiter(Some(&paths::orgs())).await.map_err(fault)?.common_prefixes {
        let objects = Objects::list(store, &org_root).await?;
        let (garbage, packs) = objects.garbage(store, now, retention).await?;
        removed += packs;
        remove(store, garbage).await?;
    }
    // Probes of instances that are gone.
    let probes: Vec<_> = store.list(Some(&Clock::folder())).try_collect().await.map_err(fault)?;
    let old = probes.into_iter().filter(|probe| age(now, probe.last_modified.into()) > retention.unpublished);
    remove(store, old.map(|probe| probe.location).collect()).await?;
    Ok(removed)
}

/// Everything of one org.
#[derive(Default)]
struct Objects {
    /// The generations of each slot, with their times.
    slots: BTreeMap<String, BTreeMap<Generation, (SystemTime, Path)>>,
    manifests: Vec<(SnapshotId, SystemTime, Path)>,
    packs: Vec<(PackId, SystemTime, Path)>,
    leases: BTreeMap<u64, Path>,
}

/// What heads name.
#[derive(Default)]
struct Named {
    manifests: HashSet<SnapshotId>,
    packs: HashSet<PackId>,
}

impl Objects {
    async fn list(store: &dyn ObjectStore, org_root: &Path) -> Result<Self, StoreError> {
        let mut objects = Self::default();
        let mut listed = store.list(Some(org_root));
        while let Some(meta) = listed.try_next().await.map_err(fault)? {
            let at = meta.last_modified.into();
            match paths::parse(org_root, &meta.location) {
                Some(Name::Head(schema, generation)) => {
                    objects.slots.entry(schema).or_default().insert(generation, (at, meta.location));
                }
                Some(Name::Manifest(snapshot)) => objects.manifests.push((snapshot, at, meta.location)),
                Some(Name::Pack(pack)) => objects.packs.push((pack, at, meta.location)),
                Some(Name::Lease(number)) => {
                    objects.leases.insert(number, meta.location);
                }
                None => {}
            }
        }
        Ok(objects)
    }

    /// What can go, packs before the heads that name them, and how many packs are among it.
    async fn garbage(
        mut self,
        store: &dyn ObjectStore,
        now: SystemTime,
        retention: &Retention,
    ) -> Result<(Vec<Path>, u64), StoreError> {
        let (mut needed, mut replaced, mut fences) = (Named::default(), Named::default(), Vec::new());
        for generations in std::mem::take(&mut self.slots).into_values() {
            let ends = generations.values().skip(1).map(|(at, _)| Some(*at)).chain([None]);
            for ((_, location), end) in generations.values().zip(ends.collect::<Vec<_>>()) {
                let past = end.map(|end| age(now, end)).unwrap_or_default();
                let named = if past > retention.grace { &mut replaced } else { &mut needed };
                match heads::read(store, location).await {
                    Ok(Some((_, facts))) => {
                        named.manifests.insert(facts.id);
                        named.packs.extend(facts.packs);
                    }
                    // Another sweep was faster.
                    Ok(None) | Err(StoreError::Missing(_)) => {}
                    Err(error) => return Err(error),
                }
                if past > retention.grace + retention.unpublished {
                    fences.push(location.clone());
                }
            }
        }
        let is_old = |at| age(now, at) > retention.unpublished * 2;
        let packs = self
            .packs
            .into_iter()
            .filter(|(pack, at, _)| !needed.packs.contains(pack) && (replaced.packs.contains(pack) || is_old(*at)));
        let mut garbage: Vec<Path> = packs.map(|(.., location)| location).collect();
        let removed = garbage.len() as u64;
        let manifests = self
            .manifests
            .into_iter()
            .filter(|(id, at, _)| !needed.manifests.contains(id) && (replaced.manifests.contains(id) || is_old(*at)));
        garbage.extend(manifests.map(|(.., location)| location));
        self.leases.pop_last();
        garbage.extend(self.leases.into_values());
        garbage.extend(fences);
        Ok((garbage, removed))
    }
}

async fn remove(store: &dyn ObjectStore, locations: Vec<Path>) -> Result<(), StoreError> {
    let removals = futures_util::stream::iter(locations).map(|location| async move {
        match store.delete(&location).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(fault(error)),
        }
    });
    removals.buffered(AT_ONCE).try_collect().await
}
