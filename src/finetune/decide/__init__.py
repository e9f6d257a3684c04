"""decide: judge the evidence by the gate's criteria and reach the verdict."""
