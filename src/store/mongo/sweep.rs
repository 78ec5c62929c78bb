//! Finds what publishers that died left behind. The rules stand in the room's doc.

use std::collections::{BTreeSet, HashSet};

use tokio::time::Instant;

use crate::model::Org;
use crate::store::StoreError;
use crate::store::mongo::Collections;
use crate::store::mongo::blobs::Blobs;

impl Collections {
    /// The orgs to sweep.
    pub async fn orgs(&self) -> Result<BTreeSet<Org>, StoreError> {
        self.create_indexes().await?;
        let mut orgs = BTreeSet::from_iter(self.packs.orgs().await?);
        orgs.extend(self.manifests.orgs().await?);
        Ok(orgs)
    }

    /// Takes marks off what a head of this org names, and marks what is held though no head names it.
    pub async fn sweep_org(&self, org: &Org) -> Result<(), StoreError> {
        let begun = Instant::now();
        let (mut packs, mut manifests) = (HashSet::new(), HashSet::new());
        for current in self.heads.of_org(org).await?.into_iter().filter_map(|(_, head)| head.current) {
            manifests.insert(current.facts.id.to_string());
            packs.extend(current.facts.packs.iter().map(ToString::to_string));
        }
        for (blobs, named) in [(&self.packs, packs), (&self.manifests, manifests)] {
            self.sweep_blobs(org, blobs, named, begun).await?;
        }
        Ok(())
    }

    async fn sweep_blobs(
        &self,
        org: &Org,
        blobs: &Blobs,
        named: HashSet<String>,
        begun: Instant,
    ) -> Result<(), StoreError> {
        blobs.unmark(org, &named.iter().cloned().collect::<Vec<_>>()).await?;
        let held = blobs.held(org, self.orphaned()).await?;
        let orphans: Vec<String> = held.into_iter().filter(|key| !named.contains(key)).collect();
        // Heads read longer ago than this may have been replaced by one that names a blob found just now.
        if orphans.is_empty() || begun.elapsed() > self.orphaned() / 2 {
            return Ok(());
        }
        tracing::info!(%org, count = orphans.len(), "marking packs or manifests that were left behind");
        blobs.expire_old(org, &orphans, self.orphaned(), self.retention.grace).await
    }

    /// Removes what has expired and what is forgotten; says how many packs.
    pub async fn remove_expired(&self) -> Result<u64, StoreError> {
        self.heads.forget(self.retention.grace + self.retention.unpublished).await?;
        self.manifests.remove_expired().await?;
        self.announcements.remove_expired().await?;
        self.packs.remove_expired().await
    }
}
