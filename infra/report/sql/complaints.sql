select opened_at, model, version, request_id, known as request_known, decision, text, state, closed_by, closing_text
from audit.complaint_state
where (model = any(%(models)s) or model is null)
  and opened_at < %(following)s and (opened_at >= %(first)s or closed_at is null or closed_at >= %(first)s)
order by opened_at, complaint_id
limit 500
