-- How wrk publishes, with the callback CALLBACK if there is one.  Without PATHS the same request is sent over and over, for
-- as long as wrk is told to.  With PATHS, a file of one path a line, each path
-- is requested once.  Then it says so and rests: wrk itself sleeps until its
-- time is over, or until somebody interrupts it.

wrk.method = "POST"
wrk.body = os.getenv("BODY")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = os.getenv("AUTHORIZATION")

if os.getenv("CALLBACK") then
   wrk.headers["Upstash-Callback"] = os.getenv("CALLBACK")
end

if os.getenv("PATHS") then
   local paths = {}
   for path in io.lines(os.getenv("PATHS")) do
      paths[#paths + 1] = path
   end
   local asked, accepted = -1, 0 -- wrk asks once for a look, and sends nothing
   local idle

   function init(args)
      idle = wrk.format("GET", "/healthz", nil, "")
   end

   function request()
      asked = asked + 1
      if asked == 0 or asked > #paths then
         return idle -- in the end some are unanswered, and wrk must send something
      end
      return wrk.format(nil, paths[asked])
   end

   function response(status, headers, body)
      if body:find("messageId", 1, true) then
         accepted = accepted + 1
         if accepted == #paths then
            io.write("\nall were accepted\n")
            io.flush()
            wrk.thread:stop()
         end
      end
   end
end

function done(summary, latency, requests)
   local faults = summary.errors
   io.write(string.format(
      '\n{"requests":%d,"took_us":%d,"not_2xx":%d,"broken":%d}\n',
      summary.requests, summary.duration, faults.status,
      faults.connect + faults.read + faults.write + faults.timeout
   ))
end
