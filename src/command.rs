//! The documents that are sent to the server, as pure functions: no I/O, no clock, no retry.
//!
//! Everything is judged by the server's clock (`$$NOW`), so no client's clock decides anything. Every value that
//! comes from a caller is wrapped in `$literal` (in an expression) or `$eq` (in a filter), so that it means itself
//! and is never read as an operator or a field path.
//!
//! Aggregation variables and expressions: <https://www.mongodb.com/docs/manual/reference/aggregation-variables/>.

use bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use serde::Deserialize;

/// How far the clocks of a router and of a shard may be apart for a release to be seen as one, in milliseconds.
const SKEW_MS: i32 = 100;
/// How long one look at many documents may take on the server, in milliseconds.
const LOOK_MS: i32 = 1000;

/// The constant part of every command on one model's collection.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// Name of the collection.
    pub collection: String,
    /// Path of the date until which a document is locked, by default `locked`.
    pub locked: String,
    /// Path of the holder's record, by default `lockedBy`.
    pub by: String,
    /// Label of this process that is stored with each lock.
    pub label: String,
    /// Projection of the document that is handed back. Empty: all fields.
    pub fields: Document,
    /// Write concern of every write.
    pub write_concern: Document,
    /// The longest pause between two looks at what is waited for, in milliseconds.
    pub poll_interval_ms: u32,
}

/// The documents of a collection whose release is waited for.
pub struct Watched {
    /// Name of the collection.
    pub collection: String,
    locked: String,
    inserted: bool,
}

/// What one call is about: which document, and which of its fields the call sets beside the lock's own.
#[derive(Clone, Debug, Deserialize)]
pub struct Subject {
    /// `_id`, the discriminator's key, the shard key's fields: each must be equal to the value given.
    pub key: Document,
    /// Fields to set, timestamps above all. Often empty.
    pub set: Document,
    /// What else the document must meet to be locked: the query of a claim.
    #[serde(default)]
    pub filter: Option<Document>,
    /// The collation of that query, if not the collection's own.
    #[serde(default)]
    pub collation: Option<Document>,
}

/// Which documents are to be claimed.
#[derive(Clone, Debug, Deserialize)]
pub struct Query {
    /// The user's filter, cast; with the discriminator's key.
    pub filter: Document,
    /// In which order they are to be taken, if any.
    pub sort: Option<Document>,
    /// The collation of filter and order, if not the collection's own.
    pub collation: Option<Document>,
    /// Fields to set with the lock.
    pub set: Document,
}

/// What names one acquisition: its lease, and its token once that is known.
///
/// The lease alone does not: a duplicate of the lock command that strays in the network may lock the document again long
/// after, with the same lease and another token.
#[derive(Clone, Debug)]
pub struct Hold {
    /// The lease, made before the command is sent.
    pub lease: ObjectId,
    /// The token that the server gave to it.
    pub token: Option<Bson>,
}

/// What the server has written down of an acquisition.
#[derive(Clone, Debug)]
pub struct Record {
    /// The token that it gave.
    pub token: Bson,
    /// When it was acquired.
    pub since: DateTime,
    /// When it ends.
    pub until: DateTime,
}

/// The lock's state as a stranger read it, to be released only if it is still so.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    locked: Bson,
    lease: Bson,
}

impl Subject {
    /// A document by its key alone.
    pub fn of(key: Document) -> Self {
        Self { key, set: Document::new(), filter: None, collation: None }
    }

    /// The document's `_id`.
    pub fn id(&self) -> &Bson {
        self.key.get("_id").unwrap_or(&Bson::Null)
    }
}

impl Target {
    /// Locks the document if it is free, or if `lease` holds it already (a retry after a lost answer).
    ///
    /// A free document gets `lease` and the next token; a retry keeps token and since. `$max` makes sure that a
    /// late duplicate never shortens a lock.
    pub fn lock(
        &self,
        subject: &Subject,
        lease: ObjectId,
        duration_ms: i64,
        max_time_ms: i64,
    ) -> Document {
        let (locked, by) = (self.locked_ref(), self.by_ref(""));
        let mine = doc! { "$eq": [self.by_ref(".lease"), lease] };
        let mut filter = equal_to(&subject.key);
        filter.insert(
            "$expr",
            doc! { "$cond": [mine.clone(), self.still_held(), doc! { "$lte": [&locked, "$$NOW"] }] },
        );
        if let Some(query) = &subject.filter {
            filter.insert("$and", [query.clone()]);
        }
        let token = doc! { "$cond": [mine.clone(), self.by_ref(".token"), self.next_token()] };
        let since = doc! { "$cond": [mine, format!("{by}.since"), "$$NOW"] };
        let set = self.taken(lease, token, since, duration_ms);
        let mut command = self.set_if(subject, filter, set, self.fields.clone(), max_time_ms);
        if let Some(collation) = &subject.collation {
            command.insert("collation", collation.clone());
        }
        command
    }

    /// Finds at most `count` documents of the query that are free, in its order: their `_id`s.
    pub fn candidates(&self, query: &Query, count: usize, max_time_ms: i64) -> Document {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let mut command = doc! {
            "find": &self.collection,
            "filter": self.free(query, Document::new()),
            "projection": { "_id": 1 },
            "limit": count,
            "batchSize": count,
            "singleBatch": true,
            "maxTimeMS": max_time_ms,
        };
        if let Some(sort) = &query.sort {
            command.insert("sort", sort.clone());
        }
        if let Some(collation) = &query.collation {
            command.insert("collation", collation.clone());
        }
        command
    }

    /// Locks those of the documents that are still free and still match the query, all with one lease.
    pub fn claim(
        &self,
        query: &Query,
        ids: &[Bson],
        lease: ObjectId,
        duration_ms: i64,
        max_time_ms: i64,
    ) -> Document {
        let filter = self.free(query, doc! { "_id": { "$in": ids } });
        let mut set = self.taken(lease, self.next_token(), "$$NOW", duration_ms);
        set.extend(literals(&query.set));
        let mut update = doc! { "q": filter, "u": [{ "$set": set }], "multi": true };
        if let Some(collation) = &query.collation {
            update.insert("collation", collation.clone());
        }
        doc! {
            "update": &self.collection,
            "updates": [update],
            "writeConcern": self.write_concern.clone(),
            "maxTimeMS": max_time_ms,
        }
    }

    /// Finds those of the documents that the lease holds; all that it has locked if that was for no time at all.
    pub fn claimed(
        &self,
        ids: &[Bson],
        lease: ObjectId,
        duration_ms: i64,
        max_time_ms: i64,
    ) -> Document {
        let mut filter = doc! { "_id": { "$in": ids } };
        filter.insert(format!("{}.lease", self.by), lease);
        let is_held = if duration_ms == 0 { self.untouched() } else { self.still_held() };
        filter.insert("$expr", is_held);
        doc! {
            "find": &self.collection,
            "filter": filter,
            "projection": self.fields.clone(),
            // One round trip for as many as one answer can hold: by default it has no more than 101 documents, and a batch
            // that is full has another after it.
            "batchSize": i64::try_from(ids.len() + 1).unwrap_or(i64::MAX),
            "maxTimeMS": max_time_ms,
        }
    }

    /// Prolongs the lock that `hold` holds to at least `duration_ms` from now; never revives a lapsed one.
    pub fn extend(
        &self,
        subject: &Subject,
        hold: &Hold,
        duration_ms: i64,
        max_time_ms: i64,
    ) -> Document {
        let mut filter = self.held_by(&subject.key, hold);
        filter.insert("$expr", self.still_held());
        let until = self.at_least(duration_ms);
        let set = doc! { &self.locked: until.clone(), format!("{}.until", self.by): until };
        self.set_if(subject, filter, set, self.fields.clone(), max_time_ms)
    }

    /// Releases the lock if `hold` was the last to take it; what another holds stays untouched. `brief`: no more of the
    /// document comes back than until when it was locked.
    pub fn release(
        &self,
        subject: &Subject,
        hold: &Hold,
        brief: bool,
        max_time_ms: i64,
    ) -> Document {
        let mut filter = self.held_by(&subject.key, hold);
        filter.insert("$expr", self.untouched());
        let set = doc! { &self.locked: "$$NOW", format!("{}.until", self.by): "$$NOW" };
        let fields = if brief {
            doc! { &self.locked: 1 }
        } else {
            self.released_fields()
        };
        self.set_if(subject, filter, set, fields, max_time_ms)
    }

    /// Releases whatever lock is in exactly the state that was read before, whoever holds it.
    pub fn release_state(&self, subject: &Subject, state: &State, max_time_ms: i64) -> Document {
        let mut filter = equal_to(&subject.key);
        filter.insert(
            "$expr",
            doc! { "$and": [
                same(&self.locked_ref(), &state.locked),
                same(&self.by_ref(".lease"), &state.lease),
            ] },
        );
        let by = self.by_ref("");
        let set = doc! {
            &self.locked: "$$NOW",
            &self.by: { "$cond": [
                { "$eq": [{ "$type": &by }, "object"] },
                { "$mergeObjects": [&by, { "until": "$$NOW" }] },
                &by,
            ] },
        };
        self.set_if(subject, filter, set, self.released_fields(), max_time_ms)
    }

    /// Prolongs all locks that the leases hold on the documents, as [`Target::extend`] does for one.
    pub fn renew_all(
        &self,
        holds: &[(Bson, ObjectId)],
        duration_ms: i64,
        max_time_ms: i64,
    ) -> Document {
        let until = self.at_least(duration_ms);
        let set = doc! { &self.locked: until.clone(), format!("{}.until", self.by): until };
        self.update_all(holds, self.still_held(), set, max_time_ms)
    }

    /// Releases all locks that the leases hold on the documents, as [`Target::release`] does for one.
    pub fn release_all(&self, holds: &[(Bson, ObjectId)], max_time_ms: i64) -> Document {
        let set = doc! { &self.locked: "$$NOW", format!("{}.until", self.by): "$$NOW" };
        self.update_all(holds, self.untouched(), set, max_time_ms)
    }

    /// Finds the documents, with the lease of each, whether its lock is as that lease left it, and whether it is held now.
    pub fn find_all(&self, holds: &[(Bson, ObjectId)], max_time_ms: i64) -> Document {
        doc! {
            "find": &self.collection,
            "filter": { "_id": { "$in": ids(holds) } },
            "projection": {
                "lease": self.by_ref(".lease"),
                "untouched": self.untouched(),
                "held": self.still_held(),
            },
            "batchSize": i64::try_from(holds.len()).unwrap_or(i64::MAX),
            "singleBatch": true,
            "maxTimeMS": max_time_ms,
        }
    }

    /// Finds the document with the given projection; an empty one gives all fields.
    pub fn find(&self, subject: &Subject, projection: &Document, max_time_ms: i64) -> Document {
        doc! {
            "find": &self.collection,
            "filter": equal_to(&subject.key),
            "projection": projection.clone(),
            "limit": 1,
            "singleBatch": true,
            "maxTimeMS": max_time_ms,
        }
    }

    /// Finds the document, as `{ left }`: for how many milliseconds it is still locked, if it is.
    pub fn look(&self, subject: &Subject, max_time_ms: i64) -> Document {
        let locked = self.locked_ref();
        let left = doc! { "$cond": [
            { "$lte": [&locked, "$$NOW"] }, 0_i64, { "$subtract": [&locked, "$$NOW"] },
        ] };
        self.find(subject, &doc! { "left": left }, max_time_ms)
    }

    /// What is to be known of a release of one of the collection's documents, and of new ones if they are waited for too.
    pub fn watched(&self, inserted: bool) -> Watched {
        Watched { collection: self.collection.clone(), locked: self.locked.clone(), inserted }
    }

    /// Finds the document, as `{ mine }`: whether `hold` was the last to take its lock.
    pub fn inspect(&self, subject: &Subject, hold: &Hold, max_time_ms: i64) -> Document {
        let mut mine = vec![doc! { "$eq": [self.by_ref(".lease"), hold.lease] }, self.untouched()];
        if let Some(token) = &hold.token {
            // In an expression equal numbers are equal whatever their type, as in a filter.
            mine.push(doc! { "$eq": [self.by_ref(".token"), { "$literal": token.clone() }] });
        }
        self.find(subject, &doc! { "mine": { "$and": mine } }, max_time_ms)
    }

    /// Projection of what [`Target::state`] and [`Target::is_untouched`] read.
    pub fn state_fields(&self) -> Document {
        let mut fields = doc! { &self.locked: 1 };
        for name in ["lease", "token", "until"] {
            fields.insert(format!("{}.{name}", self.by), 1);
        }
        fields
    }

    /// The lock's state in a document that was read with [`Target::state_fields`].
    pub fn state(&self, document: &Document) -> State {
        State {
            locked: at(document, &self.locked),
            lease: at(document, &format!("{}.lease", self.by)),
        }
    }

    /// Whether nobody who knows nothing of the holder's record has written the lock's date since.
    pub fn is_untouched(&self, document: &Document) -> bool {
        at(document, &self.locked) == at(document, &format!("{}.until", self.by))
    }

    /// Takes the holder's record out of a document that was locked: nobody else needs to know of it.
    pub fn take_record(&self, document: &mut Document) -> Record {
        let record = take(document, &self.by).unwrap_or_default();
        let date = |name| {
            let date = record.get(name).and_then(Bson::as_datetime);
            date.copied().unwrap_or(DateTime::from_millis(0))
        };
        let (since, until) = (date("since"), date("until"));
        Record { token: record.get("token").cloned().unwrap_or(Bson::Null), since, until }
    }

    /// Sets fields of the document that meets the filter.
    fn set_if(
        &self,
        subject: &Subject,
        filter: Document,
        mut set: Document,
        fields: Document,
        max_time_ms: i64,
    ) -> Document {
        set.extend(literals(&subject.set));
        self.find_and_modify(filter, doc! { "$set": set }, fields, max_time_ms)
    }

    /// Updates one document by a pipeline of one stage, and reads it back.
    pub fn find_and_modify(
        &self,
        filter: Document,
        update: Document,
        fields: Document,
        max_time_ms: i64,
    ) -> Document {
        let mut command = doc! {
            "findAndModify": &self.collection,
            "query": filter,
            "update": [update],
            "new": true,
        };
        if !fields.is_empty() {
            command.insert("fields", fields);
        }
        command.insert("writeConcern", self.write_concern.clone());
        command.insert("maxTimeMS", max_time_ms);
        command
    }

    /// What a lock writes: its end, and its holder.
    fn taken(
        &self,
        lease: ObjectId,
        token: impl Into<Bson>,
        since: impl Into<Bson>,
        duration_ms: i64,
    ) -> Document {
        let until = self.at_least(duration_ms);
        let holder = self.holder(lease, token, since, until.clone());
        // `$mergeObjects` builds a new object; an object literal would be merged into what is stored.
        doc! { &self.locked: until, &self.by: { "$mergeObjects": [holder] } }
    }

    /// The record that says who holds a lock.
    pub fn holder(
        &self,
        lease: ObjectId,
        token: impl Into<Bson>,
        since: impl Into<Bson>,
        until: Document,
    ) -> Document {
        doc! {
            "lease": lease,
            "token": token,
            "label": { "$literal": &self.label },
            "since": since,
            "until": until,
        }
    }

    /// The token after the one that was given last.
    pub fn next_token(&self) -> Document {
        let token = self.by_ref(".token");
        doc! { "$add": [{ "$cond": [{ "$isNumber": &token }, &token, 0] }, 1] }
    }

    /// The documents of the query that are free, if they meet `others` too.
    fn free(&self, query: &Query, mut others: Document) -> Document {
        others.insert("$and", [query.filter.clone()]);
        others.insert("$expr", doc! { "$lte": [self.locked_ref(), "$$NOW"] });
        others
    }

    /// Nobody needs the holder's record of what is released.
    fn released_fields(&self) -> Document {
        let mut fields = self.fields.clone();
        fields.insert(&self.by, 0);
        fields
    }

    fn update_all(
        &self,
        holds: &[(Bson, ObjectId)],
        condition: Document,
        set: Document,
        max_time_ms: i64,
    ) -> Document {
        let leases: Vec<_> = holds.iter().map(|(_, lease)| *lease).collect();
        let mut filter = doc! { "_id": { "$in": ids(holds) } };
        filter.insert(format!("{}.lease", self.by), doc! { "$in": leases });
        filter.insert("$expr", condition);
        doc! {
            "update": &self.collection,
            "updates": [{ "q": filter, "u": [{ "$set": set }], "multi": true }],
            "writeConcern": self.write_concern.clone(),
            "maxTimeMS": max_time_ms,
        }
    }

    /// By the key, the lease, and the token if it is known; to be completed with an `$expr`.
    fn held_by(&self, key: &Document, hold: &Hold) -> Document {
        let mut filter = equal_to(key);
        filter.insert(format!("{}.lease", self.by), hold.lease);
        if let Some(token) = &hold.token {
            filter.insert(format!("{}.token", self.by), doc! { "$eq": token.clone() });
        }
        filter
    }

    /// `locked` was last written together with `until`: by a lock of ours, not by an operator or another program.
    fn untouched(&self) -> Document {
        doc! { "$eq": [self.locked_ref(), self.by_ref(".until")] }
    }

    fn still_held(&self) -> Document {
        doc! { "$and": [self.untouched(), { "$gt": [self.locked_ref(), "$$NOW"] }] }
    }

    fn at_least(&self, duration_ms: i64) -> Document {
        doc! { "$max": [self.locked_ref(), { "$add": ["$$NOW", duration_ms] }] }
    }

    fn locked_ref(&self) -> String {
        format!("${}", self.locked)
    }

    fn by_ref(&self, rest: &str) -> String {
        format!("${}{rest}", self.by)
    }
}

impl Watched {
    /// A change stream's pipeline that lets releases through, replacements and deletes, as little of each as is needed.
    ///
    /// A release writes the present moment, a lock or a renewal a later one. Only servers from 6.0 on tell the moment of a
    /// change; the others' locks are let through too. A router's `$$NOW` may be ahead of a shard's clock by a little.
    /// Source: <https://www.mongodb.com/docs/manual/reference/change-events/update/>.
    pub fn releases(&self) -> [Document; 2] {
        let written = self.written();
        let moment = doc! { "$ifNull": [{ "$add": ["$wallTime", SKEW_MS] }, &written] };
        let is_release = doc! { "$and": [
            { "$eq": ["$operationType", "update"] },
            { "$gt": [&written, Bson::Null] },
            { "$lte": [&written, moment] },
        ] };
        let quiet = if self.inserted { vec!["update"] } else { vec!["insert", "update"] };
        let others = doc! { "$not": [{ "$in": ["$operationType", quiet] }] };
        [
            doc! { "$match": { "$expr": { "$or": [others, is_release] } } },
            doc! { "$project": { "operationType": 1, "ns": 1, "documentKey": 1, "locked": written } },
        ]
    }

    /// The date that an update has written to the lock's path; an update names a nested path in one word.
    fn written(&self) -> Bson {
        let fields = "$updateDescription.updatedFields";
        if self.locked.contains('.') {
            Bson::Document(doc! { "$getField": { "field": &self.locked, "input": fields } })
        } else {
            Bson::String(format!("{fields}.{}", self.locked))
        }
    }

    /// Finds those of the documents that exist, as `{ free }`: whether they can be locked now.
    pub fn find_free(&self, ids: &[Bson]) -> Document {
        doc! {
            "find": &self.collection,
            "filter": { "_id": { "$in": ids } },
            "projection": { "free": { "$lte": [format!("${}", self.locked), "$$NOW"] } },
            "batchSize": i64::try_from(ids.len()).unwrap_or(i64::MAX),
            "singleBatch": true,
            "maxTimeMS": LOOK_MS,
        }
    }

    /// The lock's date in a document.
    pub fn date(&self, document: &Document) -> Option<DateTime> {
        at(document, &self.locked).as_datetime().copied()
    }
}

/// `{path: {$eq: value}}` for each entry: an `_id` such as `{$gt: ''}` means itself.
pub fn equal_to(key: &Document) -> Document {
    key.iter()
        .map(|(path, value)| (path.clone(), Bson::Document(doc! { "$eq": value.clone() })))
        .collect()
}

/// Values to set, each meaning itself.
pub fn literals(set: &Document) -> impl Iterator<Item = (String, Bson)> {
    set.iter()
        .map(|(path, value)| (path.clone(), Bson::Document(doc! { "$literal": value.clone() })))
}

fn ids(holds: &[(Bson, ObjectId)]) -> Vec<Bson> {
    holds.iter().map(|(id, _)| id.clone()).collect()
}

/// The expression that the path holds just this value; null and missing are the same.
fn same(path: &str, value: &Bson) -> Document {
    doc! { "$eq": [{ "$ifNull": [path, Bson::Null] }, { "$literal": value.clone() }] }
}

/// The value at a dotted path; null when there is none.
fn at(document: &Document, path: &str) -> Bson {
    let mut value = None;
    let mut inside = Some(document);
    for name in path.split('.') {
        value = inside.and_then(|document| document.get(name));
        inside = value.and_then(Bson::as_document);
    }
    value.cloned().unwrap_or(Bson::Null)
}

/// Takes the document at a dotted path out of another.
fn take(document: &mut Document, path: &str) -> Option<Document> {
    if let Some((parent, rest)) = path.split_once('.') {
        return take(document.get_document_mut(parent).ok()?, rest);
    }
    match document.remove(path)? {
        Bson::Document(taken) => Some(taken),
        _ => None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn target() -> Target {
        Target {
            collection: "orders".into(),
            locked: "locked".into(),
            by: "lockedBy".into(),
            label: "$password".into(),
            fields: Document::new(),
            write_concern: doc! { "w": "majority" },
            poll_interval_ms: 250,
        }
    }

    fn subject(id: impl Into<Bson>) -> Subject {
        Subject::of(doc! { "_id": id.into() })
    }

    fn hold() -> Hold {
        Hold { lease: ObjectId::new(), token: Some(Bson::Int32(7)) }
    }

    #[test]
    fn what_a_caller_gives_is_never_read_as_an_operator_or_a_path() {
        let mut subject = subject(doc! { "$gt": "" });
        subject.set = doc! { "updatedAt": "$secret" };
        let command = target().lock(&subject, ObjectId::new(), 10, 20);
        let query = command.get_document("query").unwrap();
        assert_eq!(query.get_document("_id").unwrap(), &doc! { "$eq": { "$gt": "" } });
        let set = command.get_array("update").unwrap()[0].as_document().unwrap();
        let set = set.get_document("$set").unwrap();
        assert_eq!(set.get_document("updatedAt").unwrap(), &doc! { "$literal": "$secret" });
        let holder = set.get_document("lockedBy").unwrap().get_array("$mergeObjects").unwrap();
        let label = holder[0].as_document().unwrap().get_document("label").unwrap();
        assert_eq!(label, &doc! { "$literal": "$password" });
    }

    #[test]
    fn every_write_has_a_write_concern_and_a_time_limit() {
        let (target, subject, hold) = (target(), subject(1), hold());
        let state = target.state(&doc! {});
        for command in [
            target.lock(&subject, hold.lease, 10, 77),
            target.extend(&subject, &hold, 10, 77),
            target.release(&subject, &hold, false, 77),
            target.release(&subject, &hold, true, 77),
            target.release_state(&subject, &state, 77),
        ] {
            assert_eq!(command.get_document("writeConcern").unwrap(), &doc! { "w": "majority" });
            assert_eq!(command.get_i64("maxTimeMS").unwrap(), 77);
        }
    }

    #[test]
    fn only_lock_can_take_a_document_from_another_lease() {
        let (target, subject, hold) = (target(), subject(1), hold());
        for command in
            [target.extend(&subject, &hold, 10, 1), target.release(&subject, &hold, false, 1)]
        {
            let query = command.get_document("query").unwrap();
            assert_eq!(query.get_object_id("lockedBy.lease").unwrap(), hold.lease);
            assert_eq!(query.get_document("lockedBy.token").unwrap(), &doc! { "$eq": 7 });
        }
        let command = target.lock(&subject, hold.lease, 10, 1);
        assert!(!command.get_document("query").unwrap().contains_key("lockedBy.lease"));
    }

    #[test]
    fn a_batch_touches_only_what_its_leases_hold() {
        let (target, lease) = (target(), ObjectId::new());
        let holds = [(Bson::Int32(1), lease)];
        for command in [target.renew_all(&holds, 10, 5), target.release_all(&holds, 5)] {
            let update = command.get_array("updates").unwrap()[0].as_document().unwrap();
            let query = update.get_document("q").unwrap();
            assert_eq!(query.get_document("lockedBy.lease").unwrap(), &doc! { "$in": [lease] });
            assert!(query.contains_key("$expr"));
            assert_eq!(command.get_i64("maxTimeMS").unwrap(), 5);
        }
    }

    #[test]
    fn the_paths_follow_the_option_path_even_when_nested() {
        let target = Target { locked: "state.busy".into(), by: "state.busyBy".into(), ..target() };
        let lease = ObjectId::new();
        let document = doc! { "state": { "busy": 1, "busyBy": { "lease": lease, "until": 1 } } };
        assert!(target.is_untouched(&document));
        assert_eq!(
            target.state(&document),
            State { locked: Bson::Int32(1), lease: Bson::ObjectId(lease) }
        );
    }

    #[test]
    fn the_holders_record_is_taken_out_of_the_document() {
        let target = Target { locked: "state.busy".into(), by: "state.busyBy".into(), ..target() };
        let (since, until) = (DateTime::from_millis(1), DateTime::from_millis(2));
        let record = doc! { "token": 7, "since": since, "until": until };
        let mut document = doc! { "state": { "busy": until, "busyBy": record } };
        let Record { token, .. } = target.take_record(&mut document);
        assert_eq!((token, &document), (Bson::Int32(7), &doc! { "state": { "busy": until } }));
        let Record { token, since, .. } = target.take_record(&mut document);
        assert_eq!((token, since), (Bson::Null, DateTime::from_millis(0)));
    }

    #[test]
    fn a_document_without_lock_fields_has_a_state_of_nulls() {
        assert_eq!(
            target().state(&doc! { "_id": 1 }),
            State { locked: Bson::Null, lease: Bson::Null }
        );
    }
}
