//! The first half of a job: what is in the segments, and what of it is live.

use std::io;

use super::{Found, Stage, Work};
use crate::disk::bulk::BulkDisk;
use crate::exchange::{Answer, Exchange, Place, Question, Source, ToOwner, count, offer};
use crate::footer::{self, Sealed};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES, Kind, Record};
use crate::segment::file_name;

impl<B: BulkDisk> Work<B> {
    /// Opens the next source and reads its footer.
    pub(super) async fn read(&mut self, disk: &B, exchange: &Exchange) -> io::Result<()> {
        let number = self.files.len();
        if number > 0 && self.bodies.len() + self.others.len() >= self.entries_max {
            // The others are for another job.
            self.job.sources.truncate(number);
        }
        let Some(source) = self.job.sources.get(number).copied() else {
            self.stage = self.questions(exchange);
            return Ok(());
        };
        let file = match disk.open(&file_name(source.segment, source.class)).await {
            Ok(file) => file,
            Err(error) => {
                self.files.push(None);
                return self.read_failed(number, error);
            }
        };
        let records = match self.listed(disk, &file, number, exchange).await? {
            Some(records) => records,
            None => {
                self.unlisted.push(source.segment);
                Vec::new()
            }
        };
        self.files.push(Some(file));
        for record in records {
            match record.kind {
                Kind::Body(entry) => self.bodies.push(Found {
                    source: number,
                    sequence: record.sequence,
                    entry,
                    unlisted: false,
                    recency: None,
                }),
                Kind::Area { .. } => {}
                _ => self.others.push(record),
            }
        }
        Ok(())
    }

    async fn listed(
        &mut self,
        disk: &B,
        file: &B::File,
        number: usize,
        exchange: &Exchange,
    ) -> io::Result<Option<Vec<Record>>> {
        let source = self.job.sources[number];
        if source.unlisted {
            return Ok(None);
        }
        let sealed = Sealed {
            uuid: &exchange.uuid,
            segment: source.segment,
            len: source.len,
        };
        let listed = match footer::read(disk, file, &sealed).await {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
            Err(error) => {
                self.read_failed(number, error)?;
                None
            }
        };
        if listed.is_none() {
            count(&exchange.counters.unlisted, 1);
        }
        Ok(listed)
    }

    /// One question to each owner that may have something to say.
    fn questions(&self, exchange: &Exchange) -> Stage<B> {
        let job = self.job.number;
        exchange.ask_for(job);
        let question = |_| Question {
            job,
            places: Vec::new(),
            segments: self.unlisted.clone(),
        };
        let mut questions: Vec<Question> = (0..exchange.owners.len()).map(question).collect();
        for (number, found) in self.bodies.iter().enumerate() {
            let place = self.place(found);
            let number = u32::try_from(number).expect("bodies of a few segments");
            questions[exchange.owner(&place.digest)]
                .places
                .push((number, place));
        }
        let asked = |(_, question): &(usize, Question)| {
            !question.places.is_empty() || !question.segments.is_empty()
        };
        let questions = questions.into_iter().enumerate().filter(asked);
        let outgoing: Vec<_> = questions
            .map(|(owner, question)| (owner, ToOwner::Ask(question)))
            .collect();
        let answers = outgoing.len();
        Stage::Ask(outgoing, answers)
    }

    fn place(&self, found: &Found) -> Place {
        Place {
            digest: found.entry.digest,
            sequence: found.sequence,
            segment: self.job.sources[found.source].segment,
        }
    }

    /// Sends what is left of the questions and takes answers. Whether there was any.
    pub(super) async fn ask(&mut self, disk: &B, exchange: &Exchange) -> io::Result<bool> {
        let Stage::Ask(outgoing, answers) = &mut self.stage else {
            unreachable!("called while asking");
        };
        let mut progress = offer(exchange, outgoing);
        let mut taken = Vec::new();
        while let Some(answer) = exchange.answers.pop() {
            progress = true;
            if answer.job == self.job.number {
                *answers -= 1;
                taken.push(answer);
            }
        }
        let complete = *answers == 0;
        for answer in taken {
            self.take(answer);
        }
        if complete {
            self.bodies.retain(|found| found.recency.is_some());
            // What was idle for as long expires together.
            self.bodies.sort_by_key(|found| found.recency);
            self.begin(disk, exchange).await?;
        }
        Ok(complete || progress)
    }

    fn take(&mut self, answer: Answer) {
        for (number, recency) in answer.live {
            self.bodies[number as usize].recency = Some(recency);
        }
        for listed in answer.listed {
            let of = |source: &Source| source.segment == listed.place.segment;
            let Some(source) = self.job.sources.iter().position(of) else {
                continue;
            };
            let created = self.job.target.map_or(0, |target| target.created);
            let entry = BodyEntry {
                digest: listed.place.digest,
                offset: listed.offset,
                len: listed.len,
                created,
                media_type: listed.media_type,
                crcs: vec![0; listed.len.div_ceil(CRC_STRIDE_BYTES) as usize],
            };
            self.bodies.push(Found {
                source,
                sequence: listed.place.sequence,
                entry,
                unlisted: true,
                recency: Some(listed.recency),
            });
        }
    }
}
