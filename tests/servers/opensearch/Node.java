import static org.codelibs.opensearch.runner.OpenSearchRunner.newConfigs;

import org.codelibs.opensearch.runner.OpenSearchRunner;

/** One real OpenSearch node over one folder: java -cp "libs/*" Node.java FOLDER HTTP_PORT TRANSPORT_PORT [NAME=VALUE …] */
public class Node {
    public static void main(String[] words) throws Exception {
        OpenSearchRunner runner = new OpenSearchRunner();
        runner.onBuild((number, settings) -> {
            settings.put("http.port", words[1]);
            settings.put("transport.port", words[2]);
            settings.put("network.host", "127.0.0.1");
            settings.put("discovery.type", "single-node");
            settings.put("cluster.routing.allocation.disk.threshold_enabled", false);
            for (int n = 3; n < words.length; n++) {
                String[] parts = words[n].split("=", 2);
                settings.put(parts[0], parts[1]);
            }
        }).build(newConfigs().clusterName("semel-test").numOfNode(1).basePath(words[0]));
        System.out.println("node started");
        Thread.currentThread().join();
    }
}
