//! stub
use crate::model::*;
use crate::snapshot::*;
use crate::store::*;
use bytes::Bytes;
use std::sync::Arc;
#[derive(Clone)]
pub struct PackCache {
    pub store: Arc<dyn SnapshotStore>,
}
impl PackCache {
    pub fn new(store: Arc<dyn SnapshotStore>, _s: &(), _t: crate::task::Tasks) -> Self {
        Self { store }
    }
    pub async fn manifest(&self, slot: &Slot, id: SnapshotId) -> Result<Arc<Manifest>, StoreError> {
        let bytes = self.store.manifest(slot, id).await?;
        Manifest::decode(&bytes)
            .map(Arc::new)
            .map_err(|e| StoreError::Damaged { what: id.to_string(), fault: e.to_string() })
    }
    pub async fn pack(&self, org: &Org, id: PackId) -> Result<Bytes, StoreError> {
        self.store.pack(org, id).await
    }
}
