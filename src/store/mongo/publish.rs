//! Moving a slot: publishing and deleting, in the steps that the room's doc numbers.

use bytes::Bytes;
use tokio::time::Instant;

use crate::model::{Generation, Org};
use crate::store::mongo::Collections;
use crate::store::{Facts, Slot, StoreError};

/// The publisher was held up for so long that a sweep could take its packs for forgotten ones.
#[derive(Debug, thiserror::Error)]
#[error("publishing took too long to be safe and was given up")]
struct TooSlow;

impl Collections {
    /// Steps 2 to 6.
    pub async fn publish(
        &self,
        slot: &Slot,
        over: Generation,
        facts: &Facts,
        manifest: Bytes,
    ) -> Result<(), StoreError> {
        self.create_indexes().await?;
        let head = self.heads.read(slot).await?;
        let replaced = head.current.map(|current| current.facts);
        if head.generation != over {
            let ours = head.generation == over.next() && replaced.is_some_and(|current| current.id == facts.id);
            return if ours { Ok(()) } else { Err(StoreError::Conflict) };
        }
        facts.check_reuse(replaced.as_ref())?;
        let org = &slot.org;
        self.manifests.put(org, &facts.id.to_string(), manifest, self.retention.unpublished).await?;

        let held_at = Instant::now();
        let own: Vec<String> = facts.own_packs().map(|pack| pack.to_string()).collect();
        self.packs.hold(org, &own).await?;
        self.manifests.hold(org, &[facts.id.to_string()]).await?;
        let all: Vec<String> = facts.packs.iter().map(ToString::to_string).collect();
        if let Some(lacking) = self.packs.first_lacking(org, &all).await? {
            self.drop_unpublished(org, facts).await;
            // A pack to take over is on its way out when another publisher was faster.
            let moved = self.heads.read(slot).await?.generation != over;
            return Err(if moved { StoreError::Conflict } else { self.packs.missing(&lacking) });
        }
        if held_at.elapsed() > self.orphaned() / 2 {
            self.drop_unpublished(org, facts).await;
            return Err(StoreError::unavailable(TooSlow));
        }

        let advanced = self.heads.advance(slot, over, facts).await;
        if !matches!(advanced, Ok(true)) {
            let current = self.heads.read(slot).await.map(|head| head.current);
            if !current.is_ok_and(|current| current.is_some_and(|current| current.facts.id == facts.id)) {
                // Only who knows that it lost may mark: a compare-and-set without an answer may still win.
                return match advanced {
                    Ok(_) => {
                        self.drop_unpublished(org, facts).await;
                        Err(StoreError::Conflict)
                    }
                    Err(error) => Err(error),
                };
            }
        }

        // It is published. What follows only tidies up; the sweep does what fails here.
        if let Err(error) = self.packs.unmark(org, &own).await {
            tracing::warn!(%org, %error, "expiry marks of a published snapshot are left to the sweep");
        }
        if let Some(replaced) = replaced {
            self.expire_replaced(org, &replaced, Some(facts)).await;
        }
        Ok(())
    }

    /// Moves every slot of an org to a generation that holds nothing; says how many held a snapshot.
    pub async fn delete(&self, org: &Org) -> Result<u64, StoreError> {
        let mut deleted = 0;
        for (slot, _) in self.heads.of_org(org).await? {
            match self.heads.bury(&slot, None).await {
                Ok(Some(facts)) => {
                    deleted += 1;
                    self.expire_replaced(org, &facts, None).await;
                }
                // It held nothing, or its tombstone was removed meanwhile.
                Ok(None) | Err(StoreError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// Moves one slot from a generation to the next, which holds nothing.
    pub async fn retire(&self, slot: &Slot, over: Generation) -> Result<(), StoreError> {
        if let Some(facts) = self.heads.bury(slot, Some(over)).await? {
            self.expire_replaced(&slot.org, &facts, None).await;
        }
        Ok(())
    }

    /// Marks what only a replaced snapshot needed.
    async fn expire_replaced(&self, org: &Org, replaced: &Facts, next: Option<&Facts>) {
        let packs: Vec<String> = replaced.dropped_by(next).iter().map(ToString::to_string).collect();
        self.expire(org, &packs, replaced).await;
    }

    /// Marks again what was held for a head that did not come to be.
    async fn drop_unpublished(&self, org: &Org, facts: &Facts) {
        let packs: Vec<String> = facts.own_packs().map(|pack| pack.to_string()).collect();
        self.expire(org, &packs, facts).await;
    }

    async fn expire(&self, org: &Org, packs: &[String], snapshot: &Facts) {
        let grace = self.retention.grace;
        let marked = match self.packs.expire(org, packs, grace).await {
            Ok(()) => self.manifests.expire(org, &[snapshot.id.to_string()], grace).await,
            Err(error) => Err(error),
        };
        if let Err(error) = marked {
            tracing::warn!(%org, snapshot = %snapshot.id, %error, "packs nobody needs are left to the sweep");
        }
    }
}
