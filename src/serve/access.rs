//! From verified claims to a caller: which org, and which groups.

use tracing::Instrument;

use crate::auth::Claims;
use crate::dump::DumpError;
use crate::model::{Caller, Grants, User};
use crate::serve::{ServeError, Service};
use crate::trace::span;

impl Service {
    /// Whether a bootstrap of these claims has any prospect now. Asks neither the database nor the store once the schema is
    /// known.
    ///
    /// # Errors
    /// [`DumpError::Overloaded`] when the org was refused a moment ago because too many dumps wait, and they still do;
    /// [`ServeError::ForeignClaim`]; the source's.
    pub async fn expect_room(&self, claims: &Claims) -> Result<(), ServeError> {
        let schema = self.schema().await?;
        let org = schema.org(&claims.org).ok_or(ServeError::ForeignClaim { claim: "org" })?;
        let refused = self.refused().stands(&org, self.dumps().is_full());
        if refused { Err(DumpError::Overloaded.into()) } else { Ok(()) }
    }

    /// Whom these claims speak for. Groups listed in a token are exactly what the caller holds, nothing is added;
    /// without such a list the caller holds the org's group, the user's own and what the membership tables give, read
    /// on the primary each time, for all who ask at the same moment at once: an answer begun after a membership was taken away does not use it.
    ///
    /// # Errors
    /// [`ServeError::ForeignClaim`] when the org can't be one of this database; the source's.
    pub async fn caller(&self, claims: &Claims) -> Result<Caller, ServeError> {
        let schema = self.schema().await?;
        let org = schema.org(&claims.org).ok_or(ServeError::ForeignClaim { claim: "org" })?;
        let user = User::new(claims.user.as_str());
        let grants = match &claims.groups {
            Some(groups) => Grants::new(groups.clone()),
            None => self.loader().grants(&org, &user).instrument(span!("memberships")).await?,
        };
        Ok(Caller { org, user, grants })
    }
}
