//! Groups of questions that count only if all are right: rotations of options, and pairs.

use super::question::Question;

/// Distance between the ids of two rotations of a question in the published tables.
const ROTATION: u64 = 1_000_000;

/// Puts rotations of a question in one group. If the test set has none, they are added: each moves every option one place
/// on, the last to the front.
pub(super) fn rotations(questions: Vec<Question>) -> Vec<Question> {
    let number = |question: &Question| question.id.parse::<u64>().ok();
    if questions.iter().any(|question| number(question).is_some_and(|id| id >= ROTATION)) {
        let grouped = questions.into_iter().map(|question| match number(&question) {
            Some(id) => Question { group: (id % ROTATION).to_string(), ..question },
            None => question,
        });
        return grouped.collect();
    }
    questions.iter().flat_map(|question| (0..question.options.len().max(1)).map(|by| rotated(question, by))).collect()
}

/// The question with its options moved on by some places, under an id of its own.
fn rotated(question: &Question, by: usize) -> Question {
    let mut rotated = question.clone();
    rotated.options.rotate_right(by);
    let count = question.options.len();
    let moved = |answer: &String| match answer.chars().next() {
        Some(letter @ 'A'..='Z') if count > 0 => {
            let at = (letter as usize - 'A' as usize + by) % count;
            char::from(b'A' + at as u8).to_string()
        }
        _ => answer.clone(),
    };
    rotated.answers = question.answers.iter().map(moved).collect();
    if by > 0 {
        rotated.id = match question.id.parse::<u64>() {
            Ok(id) => (id + by as u64 * ROTATION).to_string(),
            Err(_) => format!("{}+{by}", question.id),
        };
    }
    rotated
}

/// Puts each two questions in a group: 1 and 2, 3 and 4, or 0 and 1 if there is a question 0.
pub(super) fn pairs(mut questions: Vec<Question>) -> Vec<Question> {
    let numbers = Vec::from_iter(questions.iter().map(|question| question.id.parse::<u64>().ok()));
    let first = numbers.iter().flatten().min().copied().unwrap_or(0).min(1);
    for (question, number) in questions.iter_mut().zip(numbers) {
        question.group = number.map_or_else(|| question.id.clone(), |id| ((id - first) / 2 + 1).to_string());
    }
    questions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(id: &str, options: &[&str], answer: &str) -> Question {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        Question { id: id.into(), group: id.into(), options, answers: vec![answer.into()], ..Question::default() }
    }

    #[test]
    fn missing_rotations_are_added() {
        let rotated = rotations(vec![question("5", &["x", "y", "z"], "C")]);
        let shown =
            rotated.iter().map(|q| (q.id.as_str(), q.group.as_str(), q.options.concat(), q.answers[0].as_str()));
        let expected = [("5", "5", "xyz", "C"), ("1000005", "5", "zxy", "A"), ("2000005", "5", "yzx", "B")];
        assert_eq!(
            Vec::from_iter(shown),
            expected.map(|(id, group, options, answer)| (id, group, options.into(), answer))
        );
        assert_eq!(rotations(vec![question("a", &["x", "y"], "A")])[1].id, "a+1");
        assert_eq!(rotations(vec![question("a", &[], "yes")]).len(), 1);
    }

    #[test]
    fn published_rotations_are_grouped() {
        let all = [question("5", &["x"], "A"), question("3000005", &["x"], "A"), question("6", &["x"], "A")];
        let groups = Vec::from_iter(rotations(all.into()).into_iter().map(|q| q.group));
        assert_eq!(groups, ["5", "5", "6"]);
    }

    #[test]
    fn pairs_begin_at_the_first_number() {
        let groups = |ids: &[&str]| {
            let questions = ids.iter().map(|id| question(id, &[], "")).collect();
            Vec::from_iter(pairs(questions).into_iter().map(|q| q.group))
        };
        assert_eq!(groups(&["1", "2", "3", "4"]), ["1", "1", "2", "2"]);
        assert_eq!(groups(&["0", "1", "2"]), ["1", "1", "2"]);
        assert_eq!(groups(&["a", "7"]), ["a", "4"]);
    }
}
