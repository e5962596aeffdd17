//! Lock and release by `_id` alone: what a first attempt sends, and how its answer is read.
//!
//! A server that is given nothing but an `_id`, as it is, fetches the document without planning a query. The condition
//! therefore stands in the update: where it does not hold, the document replaces itself, which writes nothing and tells
//! no change stream. The price is that a refusal brings the document back; and that it says no more than whose lock it
//! is, so an attempt that repeats one goes by its filter ([`Target::lock`], [`Target::release`]).

use bson::{Bson, Document, doc, oid::ObjectId};

use crate::command::{Hold, Subject, Target, equal_to, literals};

impl Target {
    /// Whether `_id` alone names the document, and all that is set has a plain name.
    pub fn goes_by_id(&self, subject: &Subject) -> bool {
        let is_plain = |name: &str| !name.contains('.') && !name.starts_with('$');
        subject.filter.is_none()
            && subject.key.len() == 1
            && subject.key.contains_key("_id")
            && is_plain(&self.locked)
            && subject.set.keys().all(|name| is_plain(name))
    }

    /// Locks the document if it is free, and was not locked by this very lease before.
    pub fn lock_by_id(
        &self,
        subject: &Subject,
        lease: ObjectId,
        duration_ms: i64,
        max_time_ms: i64,
    ) -> Document {
        let (locked, by) = (&self.locked, &self.by);
        // A duplicate that strays in the network finds its own lease, and does nothing.
        let is_free = doc! { "$and": [
            { "$lte": [format!("${locked}"), "$$NOW"] },
            { "$ne": [format!("${by}.lease"), lease] },
        ] };
        let until = doc! { "$add": ["$$NOW", duration_ms] };
        let holder = self.holder(lease, self.next_token(), "$$NOW", until.clone());
        let set = doc! { locked: until, by: holder };
        self.replace_if(subject, is_free, set, self.fields.clone(), max_time_ms)
    }

    /// Whether the document that came back for [`Target::lock_by_id`] was locked by it.
    pub fn is_locked_by(&self, document: &Document, lease: ObjectId) -> bool {
        self.record_of(document, lease).is_some()
    }

    /// Releases the lock if `hold` was the last to take it; what another holds stays untouched. `brief`: no more of the
    /// document comes back than is needed to tell.
    pub fn release_by_id(
        &self,
        subject: &Subject,
        hold: &Hold,
        brief: bool,
        max_time_ms: i64,
    ) -> Document {
        let (locked, by) = (&self.locked, &self.by);
        let mut is_held = vec![
            doc! { "$eq": [format!("${by}.lease"), hold.lease] },
            doc! { "$eq": [format!("${locked}"), format!("${by}.until")] },
        ];
        if let Some(token) = &hold.token {
            is_held.push(doc! { "$eq": [format!("${by}.token"), { "$literal": token.clone() }] });
        }
        let holder = doc! { "$mergeObjects": [format!("${by}"), { "until": "$$NOW" }] };
        let set = doc! { locked: "$$NOW", by: holder };
        let fields = if brief {
            doc! { locked: 1, by: 1 }
        } else {
            self.fields.clone()
        };
        self.replace_if(subject, doc! { "$and": is_held }, set, fields, max_time_ms)
    }

    /// Whether the document that came back for [`Target::release_by_id`] was released by it: what made the condition true
    /// is true of what was written.
    pub fn is_released_by(&self, document: &Document, hold: &Hold) -> bool {
        let is_mine = self.record_of(document, hold.lease).is_some_and(|record| {
            hold.token.as_ref().is_none_or(|token| record.get("token") == Some(token))
        });
        is_mine && self.is_untouched(document)
    }

    /// The holder's record, if the lease is the holder's.
    fn record_of<'d>(&self, document: &'d Document, lease: ObjectId) -> Option<&'d Document> {
        let record = document.get_document(&self.by).ok()?;
        (record.get("lease") == Some(&Bson::ObjectId(lease))).then_some(record)
    }

    /// Sets the fields of the document where the condition holds.
    fn replace_if(
        &self,
        subject: &Subject,
        condition: Document,
        mut set: Document,
        fields: Document,
        max_time_ms: i64,
    ) -> Document {
        set.extend(literals(&subject.set));
        let merged = doc! { "$mergeObjects": ["$$ROOT", set] };
        let update = doc! { "$replaceWith": { "$cond": [condition, merged, "$$ROOT"] } };
        self.find_and_modify(just(&subject.key), update, fields, max_time_ms)
    }
}

/// The key itself where it can mean nothing else: in `{$eq: …}` MongoDB 6.0 plans a query for it.
fn just(key: &Document) -> Document {
    let means_itself = |value: &Bson| {
        !matches!(value, Bson::Document(_) | Bson::Array(_) | Bson::RegularExpression(_))
    };
    if key.values().all(means_itself) { key.clone() } else { equal_to(key) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::target;

    #[test]
    fn an_id_means_itself() {
        let lease = ObjectId::new();
        for (id, query) in [
            (Bson::Int32(1), doc! { "_id": 1 }),
            (Bson::from("$a"), doc! { "_id": "$a" }),
            (doc! { "$gt": "" }.into(), doc! { "_id": { "$eq": { "$gt": "" } } }),
        ] {
            let command = target().lock_by_id(&Subject::of(doc! { "_id": id }), lease, 10, 20);
            assert_eq!(command.get_document("query").unwrap(), &query);
        }
    }

    #[test]
    fn every_write_has_a_write_concern_and_a_time_limit_and_means_what_it_sets() {
        let set = doc! { "updatedAt": "$secret" };
        let subject = Subject { set, ..Subject::of(doc! { "_id": 1 }) };
        let hold = Hold { lease: ObjectId::new(), token: Some(Bson::Int32(7)) };
        for command in [
            target().lock_by_id(&subject, hold.lease, 10, 77),
            target().release_by_id(&subject, &hold, false, 77),
            target().release_by_id(&subject, &hold, true, 77),
        ] {
            assert_eq!(command.get_document("writeConcern").unwrap(), &doc! { "w": "majority" });
            assert_eq!(command.get_i64("maxTimeMS").unwrap(), 77);
            let update = command.get_array("update").unwrap()[0].as_document().unwrap();
            let choice = update.get_document("$replaceWith").unwrap().get_array("$cond").unwrap();
            let merged = choice[1].as_document().unwrap().get_array("$mergeObjects").unwrap();
            let set = merged[1].as_document().unwrap();
            assert_eq!(set.get_document("updatedAt").unwrap(), &doc! { "$literal": "$secret" });
        }
    }

    #[test]
    fn only_plain_names_go_by_id() {
        let plain = Subject::of(doc! { "_id": 1 });
        assert!(target().goes_by_id(&plain));
        let nested = Target { locked: "state.busy".into(), ..target() };
        assert!(!nested.goes_by_id(&plain));
        let sharded = Subject::of(doc! { "_id": 1, "tenant": 1 });
        assert!(!target().goes_by_id(&sharded));
        for name in ["meta.updatedAt", "$updatedAt"] {
            let set = doc! { name: 1 };
            assert!(!target().goes_by_id(&Subject { set, ..Subject::of(doc! { "_id": 1 }) }));
        }
        let filter = Some(doc! { "state": "new" });
        assert!(!target().goes_by_id(&Subject { filter, ..Subject::of(doc! { "_id": 1 }) }));
    }

    #[test]
    fn what_a_refusal_brings_back_is_no_success() {
        let (lease, other) = (ObjectId::new(), ObjectId::new());
        let record = doc! { "lease": lease, "token": 7, "until": 1 };
        let found = |locked: i32| doc! { "locked": locked, "lockedBy": record.clone() };
        assert!(target().is_locked_by(&found(1), lease));
        assert!(!target().is_locked_by(&found(1), other));
        assert!(!target().is_locked_by(&doc! { "locked": 1 }, lease));

        let hold = |lease, token| Hold { lease, token: Some(Bson::Int32(token)) };
        assert!(target().is_released_by(&found(1), &hold(lease, 7)));
        assert!(!target().is_released_by(&found(1), &hold(other, 7)));
        assert!(!target().is_released_by(&found(1), &hold(lease, 8)), "a later acquisition");
        assert!(!target().is_released_by(&found(2), &hold(lease, 7)), "moved by hand");
    }
}
